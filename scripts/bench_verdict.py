"""Measure the price of a verdict: CPU seconds of a whole sweep on frozen features, report included, then and now.

    python scripts/bench_verdict.py --cifar10 FOLDER [--weights FILE] [--old CHECKOUT] [--seeds 10] [--only free]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/; 500 and 100 of each class are used, 6,000 in all. The
sweep has ten rounds of the low budget for each strategy and seed, and runs in one process with one thread. Then is
commit 8f96b49 with the head that model.optimizer trains, in a git worktree or in CHECKOUT. Now is this checkout with
model.head=logistic. Both take turns, and the features of both lie in the cache beforehand. Writes
results/bench_verdict.json and a table in results/README.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import check_results
import published
from frozen_features import STRATEGIES

from al_bench.analysis import report
from al_bench.provenance import machine

OUT = check_results.RESULTS / "bench_verdict.json"
THEN, NOW = "8f96b49", "now"
IMAGES = {"train": 500, "test": 100}  # of each class
# All strategies that frozen_features.py runs with every budget, and drop_query; prob_cover, the slowest, is left out.
SWEEPS = {
    "free": ["random", "margin", "entropy", "least_confidence"],  # whose selection costs nothing
    "all": [name for name in (*STRATEGIES, "drop_query") if name != "tcm"],  # the old version lacks tcm
}
WANTED = {"free": 8, "all": 4}  # times fewer CPU seconds


@contextmanager
def checkout(path: Path | None) -> Iterator[Path]:
    """The folder of the old version: `path`, or a git worktree that is removed afterwards."""
    if path:
        yield path.resolve()
        return
    git = ["git", "-C", str(published.ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*git, "add", "--quiet", "--detach", f"{folder}/old", THEN], check=True)
        try:
            yield Path(folder, "old")
        finally:
            subprocess.run([*git, "remove", "--force", f"{folder}/old"], check=True)


def copy_images(cifar10: Path, to: Path) -> None:
    for part, n in IMAGES.items():
        for home in sorted((cifar10 / part).iterdir()):
            (to / part / home.name).mkdir(parents=True)
            for file in sorted(home.iterdir())[:n]:
                shutil.copyfile(file, to / part / home.name / file.name)


def cpu_seconds(code: Path, results: Path, *overrides: str) -> float:
    """Run a sweep with the code of this folder, in one process. Its CPU seconds, its children's included."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    command = [
        sys.executable, "-m", "al_bench", "-m", "experiment=frozen_features", "trainer.threads=1",
        f"results_dir={results}", *overrides,
    ]  # fmt: skip
    with open(results.with_suffix(".log"), "w") as said:
        process = subprocess.Popen(
            command, cwd=code, env=os.environ | one_thread, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"The sweep failed ({code}): {results.with_suffix('.log').read_text()[-2000:]}")
    return used.ru_utime + used.ru_stime


def parts_of_runs(results: Path) -> dict[str, float]:
    """(seconds in fit, evaluate, predict and select; seconds in all) of the runs after the first, which imports."""
    infos = {p.parent: json.loads(p.read_text()) for p in results.rglob("run.json")}
    order = sorted(infos, key=lambda folder: infos[folder]["ended"])
    first, last = (datetime.fromisoformat(infos[order[i]]["ended"]) for i in (0, -1))
    lines = [json.loads(line) for folder in order[1:] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    inside = sum(sum(line["seconds"].values()) for line in lines)
    return {"inside": round(inside, 1), "whole": (last - first).total_seconds()}


def measured(only: list[str], seeds: int, versions: dict[str, tuple[Path, list[str]]], ask: list[str]) -> dict:
    """CPU seconds of each sweep by each version, which take turns, and the parts of their runs."""
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        ask = [*ask, f"cache_dir={folder}/cache"]
        for version, (code, more) in versions.items():
            cpu_seconds(code, Path(folder, f"first-{version}"), *ask, *more, "budget.rounds=1")
        for sweep in only:
            found[sweep] = {"seeds": seeds, "strategies": SWEEPS[sweep]}
            for version, (code, more) in versions.items():
                chosen = [f"strategy={','.join(SWEEPS[sweep])}", f"seed=range({seeds})"]
                results, start = Path(folder, f"{sweep}-{version}"), time.perf_counter()
                cpu = cpu_seconds(code, results, *ask, *more, *chosen)
                wall = time.perf_counter() - start
                found[sweep][version] = {"cpu": round(cpu, 1), "wall": round(wall, 1)} | parts_of_runs(results)
                print(sweep, version, found[sweep][version], flush=True)
    return found


def table(found: dict) -> str:
    """A row for each sweep, in Markdown."""
    heads = [
        "strategies", "runs", f"CPU seconds at {THEN}", "CPU seconds now", "times fewer (wanted)",
        "share of a run in fit, evaluate, predict and select: then, now",
    ]  # fmt: skip
    rows = []
    factors = {sweep: row[THEN]["cpu"] / row[NOW]["cpu"] for sweep, row in found.items()}
    for sweep, row in found.items():
        then, now = row[THEN], row[NOW]
        shares = ", ".join(f"{of['inside'] / of['whole']:.0%}" for of in (then, now))
        n_arms = f"all {len(row['strategies'])}, both random arms too"
        names = ", ".join(row["strategies"]) if sweep == "free" else n_arms
        runs = len(row["strategies"]) * row["seeds"]
        times = f"{factors[sweep]:.1f} ({WANTED[sweep]})"
        rows.append(
            [
                report.md(names),
                f"{runs} ({row['seeds']} seeds)",
                f"{then['cpu']:.0f}",
                f"{now['cpu']:.0f}",
                times,
                shares,
            ]
        )
    n_missed = sum(factor < WANTED[sweep] for sweep, factor in factors.items())
    words = (
        f"{n_missed} of {len(factors)} factors miss what was wanted. The start of the process and the report are "
        "included in the CPU seconds."
    )
    return f"{report.markdown_rows(heads, rows)}\n\n{words}"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    ask.add_argument("--old", type=Path, help=f"a checkout of {THEN}; without it a git worktree is made")
    ask.add_argument("--seeds", type=int, default=10)
    ask.add_argument("--only", nargs="*", default=list(SWEEPS), choices=SWEEPS)
    a = ask.parse_args()
    kept = json.loads(OUT.read_text())["sweeps"] if OUT.exists() else {}
    with checkout(a.old) as old, tempfile.TemporaryDirectory() as images:
        copy_images(a.cifar10, Path(images))
        data = published.cifar10(Path(images))
        data += [f"model.weights={a.weights.resolve()}"] if a.weights else []
        versions = {THEN: (old, []), NOW: (published.ROOT, ["model.head=logistic"])}
        found = kept | measured(a.only, a.seeds, versions, data)
    found = {sweep: found[sweep] for sweep in SWEEPS if sweep in found}
    OUT.write_text(json.dumps({"machine": machine(), "sweeps": found}, indent=1) + "\n")
    published.fill(check_results.RESULTS / "README.md", bench_verdict=table(found))


if __name__ == "__main__":
    main()
