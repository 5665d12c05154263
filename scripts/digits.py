"""The README's first figure and words: five strategies and two random arms on digits, ten seeds, from nothing.

    python scripts/digits.py        about half an hour on two cores; stopped and typed again, it goes on

Runs the sweep (into results/runs, not committed), which ends with its report, and takes from it what results/digits/
and README.md show.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from al_bench import report, results, verdict

ROOT = Path(__file__).parents[1]
STUDY, OUT = ROOT / "results" / "runs" / "digits", ROOT / "results" / "digits"
SWEEP = (
    "strategy=random,random_control,margin,entropy,bald,badge,coreset", "seed=0,1,2,3,4,5,6,7,8,9", "study=digits",
    "results_dir=results/runs",
)  # fmt: skip
FIGURES = ("learning_curves", "difference_to_random")


def main() -> None:
    done = subprocess.run([sys.executable, "-m", "al_bench", "-m", "hydra/launcher=local", *SWEEP], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)
    page = report.write(STUDY)
    (study,) = verdict.studies(results.find(STUDY))
    OUT.mkdir(exist_ok=True)
    (OUT / "records.jsonl").write_text("".join(records(study)))
    for name in ("summary.csv", "summary.md"):
        shutil.copy(page.parent / name, OUT)
    for name in FIGURES:
        for ending in ("png", "pdf"):
            (figure,) = (page.parent / "figures").glob(f"*-{name}.{ending}")
            shutil.copy(figure, OUT / f"{name}.{ending}")
    readme = ROOT / "README.md"
    block = rf"\g<1>{words(study)}\2"
    readme.write_text(re.sub(r"(<!-- digits -->\n).*?(<!-- /digits -->)", block, readme.read_text(), flags=re.S))


def words(study: verdict.Study) -> str:
    sentences = [f"- {report.md(sentence)}" for sentence in verdict.sentences(study)]
    return "\n".join([*sentences, "", report.markdown_table(study), ""])


def records(study: verdict.Study) -> list[str]:
    """Every round of every run, without what differs between machines."""
    lines = []
    for name, runs in study.runs.items():
        for run in runs:
            for line in (run.folder / "rounds.jsonl").read_text().splitlines():
                record = {k: v for k, v in json.loads(line).items() if k not in ("seconds", "peak_memory", "history")}
                lines.append(json.dumps({"strategy": name, "seed": run.seed, **record}) + "\n")
    return lines


if __name__ == "__main__":
    main()
