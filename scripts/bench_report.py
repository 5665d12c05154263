"""Measure the time and memory of `report` and `status` on 1,000 made-up runs of 30 rounds in 10 settings.

    python scripts/bench_report.py [--seeds 50] [--out results/bench_report.json]

Records are as long as real ones: 10 classes, 100 images acquired per round, 20 epochs of history. Each command runs in
a process of its own. Seconds are from its start to its end; memory is the peak of the process with its workers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from al_bench.provenance import circumstances, machine

SETTINGS, STRATEGIES, SEEDS, ROUNDS, CLASSES = 10, 10, 10, 30, 10
# Wanted for 5,000 runs (--seeds 50) too, except for `status`.
WANTED = {"report": {"seconds": 30, "memory": 0.7e9, "page": 15e6}, "status": {"seconds": 3}}


def make(root: Path, seeds: int) -> None:
    """Write the run folders of all settings, strategies and seeds."""
    rng = np.random.default_rng(0)
    names = ["random", *(f"strategy_{i}" for i in range(1, STRATEGIES))]
    for setting in range(SETTINGS):
        for gain, strategy in enumerate(names):
            for seed in range(seeds):
                write(root / f"made_up/data_{setting}/small_cnn/100+29x100/{strategy}/seed={seed}", gain / 200, rng)


def write(folder: Path, gain: float, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    order = rng.permutation(50_000)
    lines = []
    for r in range(ROUNDS):
        accuracy = 0.9 - 0.4 * np.exp(-r / 8) + (gain if r else 0) + rng.normal(0, 0.01)
        record = {
            "round": r, "n_labelled": 100 * (r + 1), "n_val": 0, "validation": None, "weights_from": r, "epochs": 20,
            "metrics": {k: accuracy for k in ("accuracy", "macro_f1", "balanced_accuracy", "worst_class")}
            | {"nll": 0.5, "ece": 0.05, "brier": 0.2, "per_class": [accuracy] * CLASSES},
            "acquired": order[100 * r : 100 * (r + 1)].tolist() if r < ROUNDS - 1 else [], "steps": 1000,
            "history": [{"loss": 0.123456789, "accuracy": 0.987654321, "val_loss": 0.5, "val_accuracy": 0.9}] * 20,
            "seconds": {k: 1.234 for k in ("fit", "evaluate", "committee", "predict", "select")},
            "peak_memory": 10**9, "n_candidates": 50_000, "class_counts": [10 * (r + 1)] * CLASSES,
        }  # fmt: skip
        lines.append(json.dumps(record) + "\n")
    (folder / "rounds.jsonl").write_text("".join(lines))
    facts = {
        "state": "finished", "error": None, "dataset": {"checksum": "a", "classes": [f"class {c}" for c in range(10)]},
        "initial_set": {"checksum": folder.name}, "starts": [circumstances()],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts, indent=1))
    config = "".join(f"group_{i}:\n" + "".join(f"  key_{j}: {j}\n" for j in range(8)) for i in range(10))
    (folder / "config.yaml").write_text(config)


def measure(command: str, root: Path) -> dict:
    start, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, "-m", "al_bench", command, str(root)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            peak = max(peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"al_bench {command} failed: see above.")
    return {"seconds": time.perf_counter() - start, "memory": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, args.seeds)
        found = {name: measure(name, root) for name in WANTED}
        found["report"]["page"] = (root / "report" / "index.html").stat().st_size
    for name, numbers in found.items():
        for key, value in numbers.items():
            limit = f", wanted below {WANTED[name][key]:g}" if key in WANTED[name] else ""
            print(f"{name} {key}: {value:.4g}{limit}")
    if args.out:
        facts = {"machine": machine(), "runs": SETTINGS * STRATEGIES * args.seeds, **found}
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
