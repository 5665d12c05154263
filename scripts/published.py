"""What the scripts of published results share: they run a sweep, and write what results/<name>/ keeps of it.

records.jsonl holds the lines of rounds.jsonl, each with its run's dataset, budget, strategy and seed in front.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import filterfalse
from pathlib import Path
from statistics import median
from typing import Any

import check_results
import numpy as np
import pandas as pd

from al_bench.analysis import compare, figures, notes, report, results, stats, tables, verdict
from al_bench.analysis.compare import CONTROL, RANDOM, Comparison, is_oracle
from al_bench.analysis.metric import ACCURACY
from al_bench.analysis.results import Run
from al_bench.analysis.stats import Efficiency
from al_bench.imports import function
from al_bench.records import SHARED_FIT
from al_bench.schedule import stages_of
from al_bench.strategies import needs_of

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results" / "runs"  # not committed


def sweep(*overrides: str, runs: Path = RUNS) -> None:
    """Run or continue a sweep in the folder `runs`. Exits if a run fails."""
    command = [sys.executable, "-m", "al_bench", "-m", "hydra/launcher=local", *overrides]
    process = subprocess.Popen([*command, f"results_dir={runs.relative_to(ROOT)}"], cwd=ROOT)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the sweep had the same Ctrl-C, and ends its runs properly
        code = process.wait()
    if code:
        sys.exit(code)


def cifar10(folder: Path) -> list[str]:
    """The settings of CIFAR-10 as images, train/<class>/ and test/<class>/, decoded larger for a pretrained net."""
    data = ["dataset=image_folder", "dataset.name=cifar10", "dataset.image_size=128"]
    return [*data, f"dataset.root={folder.resolve()}"]


def finished(folder: Path) -> list[Run]:
    return [run for run in results.find(folder) if run.state == results.FINISHED]


def keep(
    runs: list[Run], out: Path, kept: Iterable[str], dropped: Iterable[str] = (), target: float | None = None
) -> Comparison:
    """Write the committed files of a finished comparison: records, summary and figures, as its report has them.

    runs: those of one data set and budget, with the same seeds for all strategies, and those on the full data. Exits
    without writing anything if they are others. kept: names of figures. dropped: keys that the records leave out.
    """
    found = compare.comparisons(runs, target=target)
    if len(found) != 1:
        sys.exit(f"{len(found)} comparisons, not one: {', '.join(str(c.setting) for c in found)}")
    (c,) = found
    seeds = {strategy: c.seeds(strategy) for strategy in c.runs}
    if c.left_out or len(set(map(tuple, seeds.values()))) != 1:
        sys.exit(f"{c.setting} is not complete: {c.left_out or seeds}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "records.jsonl").write_text("".join(records(c, {"history", "peak_memory", *dropped})))
    if len(c.labels_R) > 1:  # the full data alone is no curve
        section = tables.section(c)
        (out / "summary.csv").write_text(report.as_csv([section]))
        (out / "summary.md").write_text(report.as_markdown([section]))
    makers = figures.makers(c)
    for name in kept:
        report.save(makers[name](), out, name)
    return c


def as_section(name: str, c: Comparison, figures: Iterable[str]) -> str:
    """The figures of results/.../<name>/ and the verdict, in Markdown."""
    drawn = "\n".join(f"![{name}: {figure}]({name}/{figure}.png)" for figure in figures)
    return f"{drawn}\n\n{words(c)}"


def records(c: Comparison, dropped: set[str]) -> list[str]:
    """Of the strategies and the references: an oracle is a line in the figure, and no result to compare with."""
    lines = []
    for run in filterfalse(is_oracle, c.all_runs):
        who = {"dataset": run.setting.dataset, "budget": run.setting.budget, "strategy": run.strategy, "seed": run.seed}
        for record in rounds(run):
            record["metrics"] = {k: v for k, v in record["metrics"].items() if k not in dropped}
            lines.append(json.dumps(who | {k: v for k, v in record.items() if k not in dropped}) + "\n")
    return lines


def rounds(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]


def words(c: Comparison) -> str:
    """The verdict in Markdown: its sentences, its table, the methods behind its numbers, and the notes."""
    section = tables.section(c)
    sentences, notes = ([f"- {report.md(text)}" for text in texts] for texts in (section.sentences, c.notes))
    how = map(report.md, section.method_notes)
    return "\n".join([*sentences, "", report.markdown_table(section), "", *how, "", *notes]).rstrip()


def noise(rounds: pd.DataFrame, target: float) -> str:
    """The gain of the second random arm, which is chance, in Markdown. rounds: from check_results.read."""
    labels_R, curve = check_results.curves(rounds, (CONTROL, RANDOM))
    area = stats.paired_difference(*(stats.aubc(labels_R, accuracy_SR) / 100 for accuracy_SR in curve.values()))
    e = savings(rounds, CONTROL, target) if pd.notna(target) else None
    return gain((area.mean, area.low, area.high), e.savings if e and e.complete else None)


def gain(area: Sequence[float], saved: Sequence[float] | None, significant: bool = False) -> str:
    """Points gained and labels saved, in Markdown. area, saved: (mean, low, high), as fractions."""
    mean, low, high = area
    points = ACCURACY.difference(mean)
    words = f"{f'**{points}**' if significant else points}{ACCURACY.bounds(low, high)}"
    if saved:
        mean, low, high = saved
        words += f"; saves {100 * mean:{verdict.PER_CENT}}%{verdict.per_cent(low, high)}"
    return words


def savings(rounds: pd.DataFrame, name: str, target: float) -> Efficiency | None:
    """As in a report: without the seeds whose initial set reaches the target, and None if these are more than half."""
    labels_R, curve = check_results.curves(rounds, (RANDOM, name))
    fair_S = np.stack([accuracy_SR[:, 0] for accuracy_SR in curve.values()]).max(0) < 100 * target
    if fair_S.mean() < 0.5:
        return None
    return stats.efficiency(*(stats.labels_to(100 * target, labels_R, a[fair_S], "envelope") for a in curve.values()))


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


def costs(comparisons: Iterable[Comparison]) -> str:
    """The median cost of each strategy's runs, and the machines of all runs, in Markdown."""
    heads = [
        "data and budget", "strategy", "runs", "samples trained", "images predicted", "fit s", "predict s", "select s",
        "whole run s", "outside the three",
    ]  # fmt: skip
    rows = []
    of_run = {run: cost(run) for c in comparisons for run in c.all_runs}  # a shared reference counts once
    for setting, strategy in dict.fromkeys((run.setting, run.strategy) for run in of_run):
        ours = [c for run, c in of_run.items() if (run.setting, run.strategy) == (setting, strategy)]
        middle = {k: median(c[k] for c in ours) for k in ours[0]}
        rows.append(
            [f"{setting.dataset} {setting.budget}", strategy, str(len(ours))]
            + [f"{middle[k]:,.0f}" for k in ("trained", "predicted", "fit", "predict", "select", "whole")]
            + [f"{middle['outside']:.0%}"]
        )
    table = report.markdown_rows(heads, [[*map(report.md, row)] for row in rows])
    total = sum(c["whole"] - c["taken"] for c in of_run.values())
    taken = any(run.fit_from for run in of_run)
    once = " A first fit that strategies of a seed share counts in each of their runs, and once here." if taken else ""
    machines = Counter(
        f"{start['cpu']}, {start['cores']} cores, threads a run: {start['threads']}, {start['device']}, "
        f"{start['precision']}, torch {start['versions']['torch']}, commit {notes.commit(start)}"
        for run in of_run
        for start in run.info["starts"][-1:]
    )
    where = "; ".join(f"{n} of {len(of_run)} runs on {machine}" for machine, n in machines.most_common())
    return (
        f"{table}\n\nAll runs one after the other: {total / 3600:.1f} hours.{once} {where}. Seconds depend on what "
        "else used the cores at the time: between strategies compare the counts."
    )


def cost(run: Run) -> dict[str, float]:
    """Counts and seconds of one run.

    whole: from start to end, or for a continued run the sum of the other seconds; with the first fit where another run
    made it. taken: what that fit took. outside: the share of the whole that is in none of the others.
    """
    lines, c = rounds(run), run.config
    stages = stages_of({key.removeprefix("strategy."): c[key] for key in c if key.startswith("strategy.")})
    stage_R = [stage for stage in stages for _ in range(stage.get("rounds") or len(lines))]  # of each round
    queries = [r for r in lines if r["acquired"]]

    def fits(record: dict[str, Any]) -> int:
        return (stage_R[record["round"]]["members"] or 1) if record["acquired"] else 1

    def predicted(record: dict[str, Any]) -> int:
        of_pool, of_labelled = passes(stage_R[record["round"]], c["features.extractor"] == "model")
        return record["n_candidates"] * of_pool + record["n_labelled"] * of_labelled

    def batch(record: dict[str, Any]) -> int:  # model.head=logistic: each step is on all labelled images
        return record["n_labelled"] if c.get("model.head") else c["trainer.batch_size"]

    epochs = sum(r["epochs"] for r in lines) if c["trainer.early_stopping.patience"] else 0
    seconds = {k: float(v.sum()) for k, v in run.seconds.items()}
    began, ended = (datetime.fromisoformat(t) for t in (run.info["starts"][-1]["time"], run.info["ended"]))
    taken = lines[0]["seconds"].get(SHARED_FIT, 0.0) if run.fit_from else 0.0
    in_one_go = len(run.info["starts"]) == 1
    parts = sum(seconds.values())
    # Start and end are noted in whole seconds, and a run may take less than one.
    whole = max((ended - began).total_seconds() + taken, parts) if in_one_go else parts
    return {
        "trained": sum(r["steps"] * fits(r) * batch(r) for r in lines),
        "predicted": sum(map(predicted, queries))
        + len(lines) * run.info["dataset"]["n_test"] * (c.get("trainer.test_passes") or 1)
        + (len(lines) + epochs) * lines[0]["n_val"],
        "fit": seconds["fit"] + seconds["committee"],
        "predict": seconds["predict"] + seconds["evaluate"],
        "select": seconds["select"],
        "whole": whole,
        "taken": taken,
        "outside": 1 - parts / whole,
    }


def passes(strategy: dict[str, Any], features_of_model: bool) -> tuple[int, int]:
    """How often a round predicts each image of the pool, and each labelled one, for this strategy."""
    needs = needs_of(function("strategy._target_", strategy["_target_"]))
    by_model = needs.embeddings or (needs.features and features_of_model)
    times = (strategy["members"] or 1) * (strategy["passes"] or 1) if needs.predictions else int(by_model)
    return times, times if needs.labelled else int(by_model)
