"""The practitioner's case: many strategies, ten seeds, three budgets, on the frozen features of EfficientNet-Lite0.

    python scripts/frozen_features.py --cifar10 FOLDER --dogs-vs-cats train.zip [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. Runs both sweeps (into results/runs, not committed)
and writes results/frozen_features/: records, summary, figures. Stopped and typed again, it goes on.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from al_bench import report, results, verdict

ROOT = Path(__file__).parents[1]
STUDY, OUT = ROOT / "results" / "runs" / "frozen_features", ROOT / "results" / "frozen_features"
STRATEGIES = (
    "random", "random_control", "least_confidence", "margin", "entropy", "bald", "power_bald", "coreset", "k_means",
    "typiclust", "prob_cover", "uncertainty_herding", "badge", "bait", "drop_query",
)  # fmt: skip
KEPT = ("accuracy", "ece", "worst_class")  # of a round's metrics, in the committed records


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    a = ask.parse_args()
    weights = [f"model.weights={a.weights.resolve()}"] if a.weights else []
    sweep("dataset=image_folder", "dataset.name=cifar10", f"dataset.root={a.cifar10.resolve()}", *weights)
    sweep("dataset=dogs_vs_cats", f"dataset.root={a.dogs_vs_cats.resolve()}", *weights)
    page = report.write(STUDY)
    OUT.mkdir(exist_ok=True)
    (OUT / "records.jsonl").write_text("".join(records()))
    for name in ("summary.csv", "summary.md"):
        shutil.copy(page.parent / name, OUT)
    for figure in (page.parent / "figures").glob("*-*_curves.p*"):
        shutil.copy(figure, OUT)


def sweep(*overrides: str) -> None:
    command = [sys.executable, "-m", "al_bench", "-m", "hydra/launcher=local", "experiment=frozen_features"]
    what = (f"strategy={','.join(STRATEGIES)}", "seed=range(10)", "budget=low,medium,high", "results_dir=results/runs")
    if code := subprocess.run([*command, *what, *overrides], cwd=ROOT).returncode:
        sys.exit(code)


def records() -> list[str]:
    """Every round of every run that was compared, without what differs between machines."""
    lines = []
    for study in verdict.studies(results.find(STUDY)):
        for name, runs in study.runs.items():
            for run in runs:
                for line in (run.folder / "rounds.jsonl").read_text().splitlines():
                    r = json.loads(line)
                    kept = {k: r[k] for k in ("round", "n_labelled", "acquired")} | {k: r["metrics"][k] for k in KEPT}
                    lines.append(
                        json.dumps({**study.cell._asdict(), "strategy": name, "seed": run.seed, **kept}) + "\n"
                    )
    return lines


if __name__ == "__main__":
    main()
