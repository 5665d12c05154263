"""What the scripts of published results share: the sweep, and what results/<name>/ keeps of it.

records.jsonl holds a line a round as rounds.jsonl does, with its run's dataset, budget, strategy and seed in front.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import check_results
import pandas as pd

from al_bench.analysis import plots, report, results, stats, verdict
from al_bench.analysis.results import Run
from al_bench.analysis.stats import Efficiency
from al_bench.analysis.verdict import CONTROL, RANDOM, Study
from al_bench.imports import function
from al_bench.strategies import needs_of

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results" / "runs"  # not committed


def sweep(*overrides: str, runs: Path = RUNS) -> None:
    """From nothing, or from where it was stopped, into the folder `runs`. Ends this program where a run fails."""
    command = [sys.executable, "-m", "al_bench", "-m", "hydra/launcher=local", *overrides]
    process = subprocess.Popen([*command, f"results_dir={runs.relative_to(ROOT)}"], cwd=ROOT)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # it had the same Ctrl-C, and leaves its runs in order
        code = process.wait()
    if code:
        sys.exit(code)


def keep(
    runs: list[Run], out: Path, figures: Iterable[str], dropped: Iterable[str] = (), target: float | None = None
) -> Study:
    """Write what is committed of a finished comparison: records, summary, figures, as its report has them.

    runs: of one data set and budget, with the same seeds for all strategies, and on the full data; else nothing is
    written.
    """
    studies = verdict.studies(runs, target)
    if len(studies) != 1:
        sys.exit(f"{len(studies)} comparisons, not one: {', '.join(str(s.cell) for s in studies)}")
    (s,) = studies
    drawings = {name: rest for name, *rest in (*report.drawings(s), *report.in_detail(s))}
    seeds = {strategy: s.seeds(strategy) for strategy in s.runs}
    if s.left_out or len(set(map(tuple, seeds.values()))) != 1:
        sys.exit(f"{s.cell} is not complete: {s.left_out or seeds}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "records.jsonl").write_text("".join(records(s, {"history", "peak_memory", *dropped})))
    if len(s.labels_R) > 1:  # the full data alone is no curve
        (out / "summary.csv").write_text(report.as_csv([s]))
        (out / "summary.md").write_text(report.as_markdown([s]))
    for name in figures:
        title, caption, draw = drawings[name]
        draw(figure := plots.new_figure())
        report.save(figure, out, name, title, caption)
    return s


def records(s: Study, dropped: set[str]) -> list[str]:
    lines = []
    for run in s.all_runs:
        who = {"dataset": run.cell.dataset, "budget": run.cell.budget, "strategy": run.strategy, "seed": run.seed}
        for record in rounds(run):
            record["metrics"] = {k: v for k, v in record["metrics"].items() if k not in dropped}
            lines.append(json.dumps(who | {k: v for k, v in record.items() if k not in dropped}) + "\n")
    return lines


def rounds(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]


def words(s: Study) -> str:
    """The verdict's sentences, its table, how its numbers came about and what is to be known, in Markdown."""
    notes = [f"- {report.md(note)}" for note in s.notes]
    return "\n".join([*(f"- {report.md(words)}" for words in verdict.sentences(s)), "", table(s), "", *notes]).rstrip()


def table(s: Study) -> str:
    return "\n".join([report.markdown_table(s), "", *map(report.md, report.how(s))])


def noise(rounds: pd.DataFrame, target: float) -> str:
    """What a second random arm gains, which is chance. rounds: as check_results reads them."""
    labels_R, curve = check_results.curves(rounds, (CONTROL, RANDOM))
    area = stats.compare(*(stats.aubc(labels_R, accuracy_SR) / 100 for accuracy_SR in curve.values()))
    e = savings(rounds, CONTROL, target) if pd.notna(target) else None
    return gain((area.mean, area.low, area.high), e.savings if e and e.n_pairs == e.n else None)


def gain(area: Sequence[float], saved: Sequence[float] | None, significant: bool = False) -> str:
    """Of fractions: (mean, low, high)."""
    mean, low, high = area
    points = f"**{verdict.points(mean)}**" if significant else verdict.points(mean)
    words = f"{points}{verdict.interval(low, high)}"
    if saved:
        mean, low, high = saved
        words += f"; saves {100 * mean:{verdict.PER_CENT}}%{verdict.interval(low, high, verdict.PER_CENT)}"
    return words


def savings(rounds: pd.DataFrame, name: str, target: float) -> Efficiency:
    labels_R, curve = check_results.curves(rounds, (RANDOM, name))
    reached = (stats.labels_to(100 * target, labels_R, accuracy_SR, "envelope") for accuracy_SR in curve.values())
    return stats.efficiency(*reached)


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


def costs(studies: Iterable[Study]) -> str:
    """What the runs of each strategy took, in medians, and on which machine, in Markdown."""
    heads = [
        "data and budget", "strategy", "runs", "samples trained", "images predicted", "fit s", "predict s", "select s",
        "whole run s", "outside the three",
    ]  # fmt: skip
    rows = []
    of_run = {run: cost(run) for s in studies for run in s.all_runs}  # a reference of several studies counts once
    for cell, strategy in dict.fromkeys((run.cell, run.strategy) for run in of_run):
        ours = [c for run, c in of_run.items() if (run.cell, run.strategy) == (cell, strategy)]
        middle = {k: median(c[k] for c in ours) for k in ours[0]}
        rows.append(
            [f"{cell.dataset} {cell.budget}", strategy, str(len(ours))]
            + [f"{middle[k]:,.0f}" for k in ("trained", "predicted", "fit", "predict", "select", "whole")]
            + [f"{middle['outside']:.0%}"]
        )
    table = report.markdown_rows(heads, [[*map(report.md, row)] for row in rows])
    total = sum(c["whole"] for c in of_run.values())
    machines = Counter(
        f"{start['cpu']}, {start['cores']} cores, threads a run: {start['threads']}, {start['device']}, "
        f"{start['precision']}, torch {start['versions']['torch']}, commit {results.commit(start)}"
        for run in of_run
        for start in run.info["starts"][-1:]
    )
    where = "; ".join(f"{n} of {len(of_run)} runs on {machine}" for machine, n in machines.most_common())
    return (
        f"{table}\n\nAll runs one after the other: {total / 3600:.1f} hours. {where}. Seconds depend on what "
        "else used the cores at the time: between strategies compare the counts."
    )


def cost(run: Run) -> dict[str, float]:
    """Counts and seconds of one run. `whole`: from start to end, of a continued run the sum of the other seconds;
    `outside`: the part of the whole in none of the others."""
    lines, c = rounds(run), run.config
    needs = needs_of(function("strategy._target_", c["strategy._target_"]))
    members = c["strategy.members"] or 1
    by_model = needs.embeddings or (needs.features and c["features.extractor"] == "model")
    times = members * (c["strategy.passes"] or 1) if needs.predictions else by_model
    of_labelled = times if needs.labelled else by_model
    queries = [r for r in lines if r["acquired"]]
    epochs = sum(r["epochs"] for r in lines) if c["trainer.early_stopping.patience"] else 0
    seconds = {k: float(v.sum()) for k, v in run.seconds.items()}
    began, ended = (datetime.fromisoformat(t) for t in (run.info["starts"][-1]["time"], run.info["ended"]))
    in_one_go = len(run.info["starts"]) == 1
    whole = (ended - began).total_seconds() if in_one_go else sum(seconds.values())
    return {
        "trained": sum(r["steps"] * (members if r in queries else 1) for r in lines) * c["trainer.batch_size"],
        "predicted": sum(r["n_candidates"] * times + r["n_labelled"] * of_labelled for r in queries)
        + len(lines) * run.info["dataset"]["n_test"] * (c.get("trainer.test_passes") or 1)
        + (len(lines) + epochs) * lines[0]["n_val"],
        "fit": seconds["fit"] + seconds["committee"],
        "predict": seconds["predict"] + seconds["evaluate"],
        "select": seconds["select"],
        "whole": whole,
        "outside": 1 - sum(seconds.values()) / whole,
    }
