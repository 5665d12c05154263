"""What the scripts of published results share: the sweep, and what results/<name>/ keeps of it.

records.jsonl holds a line a round as rounds.jsonl does, with its run's dataset, budget, strategy and seed in front.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from statistics import median

from al_bench import report, results, verdict
from al_bench.results import Run
from al_bench.store import as_file_name
from al_bench.verdict import Study

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results" / "runs"  # not committed
DROPPED = ("history", "peak_memory")


def sweep(*overrides: str) -> None:
    """From nothing, or from where it was stopped. Ends this program where a run fails."""
    command = [sys.executable, "-m", "al_bench", "-m", "hydra/launcher=local", *overrides]
    if code := subprocess.run([*command, f"results_dir={RUNS.relative_to(ROOT)}"], cwd=ROOT).returncode:
        sys.exit(code)


def keep(
    name: str, out: Path, figures: Iterable[str], dropped: Iterable[str] = (), target: float | None = None
) -> list[Study]:
    """Write the report of the runs of this name and take from it what is committed: records, summary, figures."""
    page = report.write(RUNS / name, target)
    studies = verdict.studies(results.find(RUNS / name), target)
    out.mkdir(exist_ok=True)
    lines = [line for s in studies for line in records(s, {*DROPPED, *dropped})]
    (out / "records.jsonl").write_text("".join(lines))
    for table in ("summary.csv", "summary.md"):
        shutil.copy(page.parent / table, out)
    for s in studies:
        for figure in figures:
            for path in (page.parent / "figures").glob(f"{as_file_name('-'.join(s.cell))}-{figure}.p*"):
                place = f"{s.cell.dataset}-{s.cell.budget}-" if len(studies) > 1 else ""
                shutil.copy(path, out / f"{place}{figure}{path.suffix}")
    return studies


def records(s: Study, dropped: set[str]) -> list[str]:
    lines = []
    for name, runs in s.runs.items():
        for run in runs:
            who = {"dataset": s.cell.dataset, "budget": s.cell.budget, "strategy": name, "seed": run.seed}
            for line in (run.folder / "rounds.jsonl").read_text().splitlines():
                record = {k: v for k, v in json.loads(line).items() if k not in dropped}
                lines.append(json.dumps(who | record) + "\n")
    return lines


def words(s: Study) -> str:
    """The verdict's sentences and its table, in Markdown."""
    return "\n".join([*(f"- {report.md(sentence)}" for sentence in verdict.sentences(s)), "", report.markdown_table(s)])


def fill(path: Path, **parts: str) -> None:
    """Put each text between <!-- name --> and <!-- /name --> of a Markdown file."""
    page = path.read_text()
    for name, text in parts.items():
        page, n = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.S
        )
        if n != 1:
            sys.exit(f"{path} has no place for {name}: <!-- {name} --> and <!-- /{name} -->.")
    path.write_text(page)


def costs(runs: Iterable[Run]) -> str:
    """What the runs of each strategy took, in medians, and on which machine, in Markdown."""
    runs = list(runs)
    rows = [
        ["data and budget", "strategy", "runs", "samples trained", "images predicted", "fit s", "predict s", "select s",
         "whole run s", "outside these"],
    ]  # fmt: skip
    kinds = dict.fromkeys((run.cell, run.strategy) for run in runs)
    for cell, strategy in kinds:
        ours = [cost(run) for run in runs if (run.cell, run.strategy) == (cell, strategy)]
        middle = {k: median(c[k] for c in ours) for k in ours[0]}
        rows.append(
            [f"{cell.dataset} {cell.budget}", strategy, str(len(ours))]
            + [f"{middle[k]:,.0f}" for k in ("trained", "predicted", "fit", "predict", "select", "whole")]
            + [f"{middle['outside']:.0%}"]
        )
    rows.insert(1, ["---"] * len(rows[0]))
    table = "\n".join(f"| {' | '.join(map(report.md, row))} |" for row in rows)
    total = sum(cost(run)["whole"] for run in runs)
    machines = Counter(
        f"{start['cpu']}, {start['cores']} cores, {start['threads']} threads a run, {start['device']}, "
        f"{start['precision']}, torch {start['versions']['torch']}"
        for run in runs
        for start in run.info["starts"][-1:]
    )
    where = "; ".join(f"{n} runs on {machine}" for machine, n in machines.most_common())
    return f"{table}\n\nAll runs together: {total / 3600:.1f} hours. {where}."


def cost(run: Run) -> dict[str, float]:
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    times = run.config["strategy.passes"] or run.config["strategy.members"] or 1
    looked = [r["n_candidates"] * times for r in lines if r["seconds"]["predict"] > 0.005]  # random looks at nothing
    seconds = {k: float(v.sum()) for k, v in run.seconds.items()}
    began, ended = (datetime.fromisoformat(t) for t in (run.info["starts"][-1]["time"], run.info["ended"]))
    whole = (ended - began).total_seconds()
    in_one_go = len(run.info["starts"]) == 1
    return {
        "trained": sum(r["steps"] for r in lines) * run.config["trainer.batch_size"],
        "predicted": sum(looked) + len(lines) * run.info["dataset"]["n_test"],
        "fit": seconds["fit"] + seconds["committee"],
        "predict": seconds["predict"] + seconds["evaluate"],
        "select": seconds["select"],
        "whole": whole if in_one_go else sum(seconds.values()),
        "outside": 1 - sum(seconds.values()) / whole if in_one_go else 0.0,
    }
