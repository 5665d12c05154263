"""The report of a results folder: one page that opens from disk, tables, figures. Only reads results.

    al-bench report results/my_study

Written into <folder>/report/: index.html (self-contained), verdict.txt, summary.csv, .md and .tex, figures/*.png and
*.pdf.
"""

import argparse
import base64
import hashlib
import html
import io
import itertools
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from PIL import Image

import al_bench
from al_bench.analysis import plots, results, stats, verdict
from al_bench.analysis.verdict import CONTROL, RANDOM, Across, Study
from al_bench.errors import UserError
from al_bench.files import read_file, write_atomically
from al_bench.provenance import n_cores
from al_bench.recipe import as_file_name
from al_bench.text import as_cell, printable

SHEETS = 12  # contact sheets on a page, to keep it light
LEFT_OUT = 5  # runs named on the screen
PROCESSES = 4  # at the most; each holds 0.2 GB
NOT_DRAWN = "This figure could not be drawn"
COLUMNS = {  # of the tables that people read: column of verdict.summary -> heading
    "strategy": "strategy",
    "n_seeds": "seeds",
    "final_accuracy": "final accuracy",
    "mean_accuracy_over_labels": "mean accuracy over labels",
    "minus_random": "minus random (points)",
    "labels_to_target_median": "labels to target, median",
    "labels_saved": "labels saved",
    "p_holm": "p (Wilcoxon, Holm)",
    "duplicate_share": "copies of what it had bought",
}


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    name: str  # of the files figures/<name>.png and .pdf
    png: str = ""  # as a data URL; none where it could not be drawn


def main(arguments: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="al-bench report", description="Write the report of a results folder.")
    ask.add_argument("folder", type=Path, help="results, results/my_study, or a folder further down")
    ask.add_argument("--target", type=float, help="the accuracy to count labels to, a fraction: 0.9")
    asked = ask.parse_args(arguments)
    try:
        page = write(asked.folder, asked.target)
    except UserError as error:
        print(f"al_bench: {error}", file=sys.stderr)
        return 1
    print(results.in_words(page))
    return 0


def write(root: Path, target: float | None = None) -> Path:
    """Write the report of all runs below root and return the path of its page. Raises UserError."""
    if target is not None and not 0 < target < 1:
        raise UserError(f"--target {target}: an accuracy between 0 and 1, such as 0.9.")
    folder = root / "report"
    results.folders(root)  # where there is no run, there is no folder to make
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock"):  # of sweeps of one study that end together
            made_of = results.stamp(root)
            studies = verdict.studies(results.find(root), target)
            for old in (folder / "figures").glob("*.p*"):
                old.unlink()
            closed = "".join(f"{words}\n" for words in results.closed(root))
            write_atomically(folder / results.VERDICT, as_text(studies) + closed)
            write_atomically(folder / "summary.md", as_markdown(studies))
            write_atomically(folder / "index.html", page(root, studies, folder / "figures"))
            write_atomically(folder / "summary.csv", as_csv(studies))
            write_atomically(folder / "summary.tex", as_latex(studies))
            write_atomically(folder / results.STAMP, json.dumps(made_of) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None
    return folder / "index.html"


# -- tables --


def table(s: Study) -> list[dict[str, str]]:
    """The rows people read, best first among those compared with random: heading -> cell."""
    order = sorted(s.runs, key=lambda name: -s.against[name].area.mean if name in s.against else -np.inf)
    return [readable(s, s.rows[name]) for name in order]


def readable(s: Study, r: dict[str, Any]) -> dict[str, str]:
    per_cent = {"final_accuracy", "mean_accuracy_over_labels", "duplicate_share"}
    cells = {}
    for key, heading in COLUMNS.items():
        if key == "duplicate_share" and key not in r:
            continue  # a column only where the pool has copies
        value = r.get(key)
        if key == "p_holm" and r.get("why_no_call"):
            cells[heading] = "no call"
        elif value is None and key == "labels_saved" and "n_pairs" in r and s.target is not None:
            reached = r["pairs_that_reached_target"], r["pairs_in_which_random_did"]
            cells[heading] = f"reached {verdict.in_pairs(*reached, r['n_pairs'])}"
        elif value is None:
            cells[heading] = ""
        elif key in per_cent:
            cells[heading] = f"{100 * value:.1f}%"
        elif key == "minus_random":
            bounds = verdict.interval(r["minus_random_low"], r["minus_random_high"])
            cells[heading] = f"{verdict.points(value)}{bounds}"
        elif key == "labels_saved":
            bounds = verdict.interval(r["labels_saved_low"], r["labels_saved_high"], verdict.PER_CENT)
            cells[heading] = f"{100 * value:{verdict.PER_CENT}}%{bounds}"
        elif key == "labels_to_target_median":
            cells[heading] = f"{value:,.0f}" if np.isfinite(value) else f"> {s.labels_R[-1]:,}"
        elif key == "p_holm":
            cells[heading] = f"{value:.2g}"
        else:
            cells[heading] = str(value)
    return cells


def as_text(studies: list[Study]) -> str:
    """The verdict of each study, what is to be known of it and what it leaves out, a line each."""
    lines = []
    for s in studies:
        left_out = [f"Left out: {who}: {why}" for who, why in s.left_out[:LEFT_OUT]]
        if (more := len(s.left_out) - LEFT_OUT) > 0:
            left_out.append(f"Left out: {more} more, which the page names.")
        lines += [f"{s.cell}:", *(f"  {words}" for words in (*verdict.sentences(s), *s.notes, *left_out))]
    return "\n".join([*lines, ""])


def as_csv(studies: list[Study]) -> str:
    import pandas as pd  # memory that the processes that draw can do without

    return pd.DataFrame(verdict.summary(studies)).map(as_cell).to_csv(index=False)


def as_markdown(studies: list[Study]) -> str:
    parts = []
    for s in studies:
        parts += [f"### {md(str(s.cell))}", ""]
        parts += [f"- {md(words)}" for words in verdict.sentences(s)] + [""]
        if s.runs:
            parts += [markdown_table(s), "", *(md(words) for words in how(s)), ""]
        parts += [f"- {md(words)}" for words in s.notes]
        parts += [f"- Left out: {md(who)}: {md(why)}" for who, why in s.left_out] + [""]
    return "\n".join(parts)


def markdown_table(s: Study) -> str:
    rows = table(s)
    return markdown_rows(list(rows[0]), [[*map(md, r.values())] for r in rows])


def markdown_rows(heads: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def md(text: str) -> str:
    return re.sub(r"([\\`*_<>|]|(?<=\])\()", r"\\\1", text).replace("\n", " ")


def as_latex(studies: list[Study]) -> str:
    import pandas as pd

    return "\n".join(
        pd.DataFrame(table(s)).to_latex(index=False, escape=True, caption=tex(str(s.cell)), position="htbp")
        for s in studies
        if s.runs
    )


def tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))


def how(s: Study) -> list[str]:
    """How the numbers of the table came about."""
    if len(s.labels_R) == 1:
        return []
    words = [
        f"Paired with random by seed. Mean accuracy over labels: area under the curve from {s.labels_R[0]:,} to "
        f"{s.labels_R[-1]:,} labels, divided by its width. 95% intervals: BCa bootstrap over seeds from "
        f"{stats.BOOTSTRAP_FROM} pairs on, Student's t below; of labels saved, Student's t of their logarithms."
    ]
    if s.target is not None:
        by_random = ", the highest whole per cent that random reaches with every seed"
        words.append(
            f"Target: {s.target:.1%}{by_random if s.target == verdict.reached_by_all(s) else ''}. Labels to the "
            "target: the first label count trained that has it, the median by nearest rank; labels saved: 1 - labels / "
            "random's labels at the interpolated crossings of the running maximum, geometric mean over the pairs that "
            "both reach it."
        )
    return words


# -- figures --


def pictures(s: Study, folder: Path) -> Iterator[Picture]:
    for name, title, caption, draw in itertools.chain(attempted(drawings(s)), attempted(in_detail(s))):
        try:
            draw(figure := plots.new_figure())
            yield save(figure, folder, file_name(f"{'-'.join(s.cell)}-{name}"), title, caption)
        except OSError:
            raise
        except Exception as error:  # a figure less, and no report less
            yield Picture(title, f"{NOT_DRAWN}: {printable(str(error))}", name)


def attempted(drawn: Iterator[tuple[str, str, str, Callable[[Figure], Any]]]) -> Iterator[tuple]:
    """The figures up to one whose numbers cannot be had."""
    try:
        yield from drawn
    except Exception as error:
        why = error

        def fail(figure: Figure) -> None:
            raise why

        yield "others", "Other figures", "", fail


def file_name(name: str) -> str:
    """A file system takes names of at most 255 bytes."""
    name = as_file_name(name)
    return name if len(name.encode()) <= 200 else f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def save(figure: Figure, folder: Path, name: str, title: str, caption: str) -> Picture:
    # Each drawn once: figure.savefig draws a figure that has a layout twice, and the drawing takes the time.
    dpi, figure.dpi = figure.dpi, 200
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(folder / f"{name}.png")
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    figure.dpi = dpi
    figure.set_layout_engine("none")  # it stays as it is, and need not be worked out again
    FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf", metadata={"CreationDate": None})
    small = io.BytesIO()
    drawn.quantize(128, dither=Image.Dither.NONE).save(small, "png")
    return Picture(title, caption, name, f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}")


def across_pictures(a: Across, folder: Path) -> Iterator[Picture]:
    figure = plots.new_figure()
    plots.penalty_matrix(figure.subplots(), a.names, a.penalty_MM)
    caption = f"Mean over {len(a.score_BM)} studies of the share of label counts at which the row beats the column."
    yield save(figure, folder, "all-penalty_matrix", "Who beats whom", caption)
    if a.ranks:
        figure = plots.new_figure()
        plots.rank_diagram(figure.subplots(), a.names, a.ranks.mean_M, a.ranks.p_wilcoxon_MM >= verdict.ALPHA)
        caption = (
            f"Over {a.ranks.n_blocks} studies, by {verdict.AREA}; bars join what exact Wilcoxon tests with Holm's "
            f"correction do not tell apart. Friedman p = {a.ranks.p_friedman:.2g}."
        )
        yield save(figure, folder, "all-ranks", "Mean ranks", caption)


def drawings(s: Study) -> Iterator[tuple[str, str, str, Callable[[Figure], Any]]]:
    """(name, title, caption, draws on a figure) of each figure that this study has the numbers for."""
    names = [name for name in s.runs if name != CONTROL]
    if not names:
        return
    looks = plots.style(names)
    seeds = ", ".join(f"{name} {len(s.runs[name])}" for name in names)

    def over(metric: str, label: str, percent: bool) -> Callable[[Figure], Any]:
        curves = {name: (s.labels_R, s.curve(name, metric)) for name in names}
        return lambda f: plots.over_labels(f.subplots(), curves, label, percent, styles=looks)

    curves = {name: (s.labels_R, s.curve(name)) for name in names}
    yield (
        "learning_curves", "Learning curves",
        f"Mean and 95% interval of the mean, cut at the frame where wide; seeds: {seeds}.",
        lambda f: plots.learning_curves(f.subplots(), curves, s.full, looks),
    )  # fmt: skip
    if s.against:
        band = verdict.noise(s)
        differences = {name: a.difference for name, a in s.against.items()}
        words = (
            " Grey: a second random arm's difference to the first."
            if band
            else f" strategy={CONTROL} in the sweep would draw the noise: random against random."
        )
        yield (
            "difference_to_random", "Difference to random",
            f"Paired by seed, pointwise 95% intervals that resample whole curves, cut at the frame where wide.{words}",
            lambda f: plots.difference_to_random(f.subplots(), s.labels_R, differences, band, looks),
        )  # fmt: skip
    if s.against and s.target is not None:
        rows = {
            name: tuple(float(np.median(s.labels_to_target(x, "envelope", a.seeds))) for x in (RANDOM, name))
            for name, a in s.against.items()
        }
        yield (
            "labels_to_target", f"Labels to {s.target:.1%}",
            "Median over the pairs of seeds, where the running maximum crosses it, interpolated. An arrow: not reached "
            "by half of them.",
            lambda f: plots.labels_to_target(f.subplots(), rows, s.target, s.labels_R[-1], looks),
        )  # fmt: skip
    if (accuracy_MSR := paired(s, names)) is not None:
        penalty_MM = stats.penalty_holm(accuracy_MSR)
        yield (
            "penalty_matrix", "Who beats whom",
            "Share of the label counts at which the row beats the column: paired t-tests, with Holm's correction over "
            "the label counts of each pair.",
            lambda f: plots.penalty_matrix(f.subplots(), names, penalty_MM),
        )  # fmt: skip
    points = {name: (seconds(s, name), float(s.curve(name)[:, -1].mean())) for name in names}
    yield (
        "cost", "Cost against accuracy", "Median seconds of a whole run: fit, evaluate, predict and select.",
        lambda f: plots.cost(f.subplots(), points, styles=looks),
    )  # fmt: skip
    yield ("calibration", "Calibration", "Expected calibration error on the test set.", over("ece", "ECE", False))
    if all("worst_class" in run.metrics for name in names for run in s.runs[name]):
        yield (
            "worst_class",
            "Worst class",
            "Lowest recall of any class.",
            over("worst_class", "Worst class's recall", True),
        )
    bought = len(s.labels_R) > 1
    counted = [run.class_counts_RC for name in names for run in s.runs[name]]
    if bought and all(x is not None for x in counted) and len({x.shape[1] for x in counted}) == 1:
        counts_MC = [np.mean([verdict.bought_per_class(s, run) for run in s.runs[name]], axis=0) for name in names]
        known = (s.runs[names[0]][0].info.get("dataset") or {}).get("classes")
        classes = known or [str(c) for c in range(len(counts_MC[0]))]
        yield (
            "class_balance", "Classes of what was bought", "After the initial set; mean over seeds.",
            lambda f: plots.class_balance(f.subplots(), names, counts_MC, classes, styles=looks),
        )  # fmt: skip
    if len(names) > 1 and (jaccard_MM := overlaps(s, names)) is not None:
        yield (
            "overlap", "Overlap of what was bought", "Up to the last label count, mean over seeds in common.",
            lambda f: plots.overlap(f.subplots(), names, jaccard_MM),
        )  # fmt: skip


def in_detail(s: Study) -> Iterator[tuple[str, str, str, Callable[[Figure], Any]]]:
    """How the full-data run went, and single runs of strategies with one seed: as (name, title, caption, draw)."""
    for run in s.references[:1]:
        epochs = results.histories(run)[-1]
        for quantity in ("accuracy", "loss"):
            yield (
                f"full_{quantity}", f"Training on the full data: {quantity}", f"Over its epochs; seed {run.seed}.",
                lambda f, e=epochs, q=quantity: plots.training_history(f.subplots(), e, q),
            )  # fmt: skip
    full_of = s.full_by_seed
    for i, (strategy, (run, *more)) in enumerate(s.runs.items()):
        if more:
            continue
        name = f"{i}-{strategy}"  # as file names two strategies may be alike
        labelled_R, n_val = run.labels_R, (run.info.get("validation_set") or {}).get("n", 0)
        unlabelled_R = (run.info.get("dataset") or {}).get("n_train", 0) - n_val - labelled_R
        accuracy_R, epochs = run.metrics["accuracy"], results.histories(run)
        full = full_of.get(run.seed, s.full)  # of the same test set, where that seed has it
        yield (
            f"pool-{name}", "Training set and pool", f"At each training of {run.name}.",
            lambda f, a=labelled_R, b=unlabelled_R: plots.pool_sizes(f.subplots(), a, b),
        )  # fmt: skip
        yield (
            f"retraining-{name}", "Test accuracy", f"After each training of {run.name}.",
            lambda f, a=accuracy_R, full=full: plots.retraining_accuracy(f.subplots(), a, full),
        )  # fmt: skip
        if any("val_accuracy" in epoch for history in epochs for epoch in history):
            yield (
                f"validation-{name}", "Validation accuracy", f"Over all epochs of {run.name}.",
                lambda f, e=epochs: plots.validation_history(f.subplots(), e),
            )  # fmt: skip


def paired(s: Study, names: list[str]) -> np.ndarray | None:
    """accuracy_MSR over the seeds that all have; None below 2 of them or of strategies."""
    seeds = s.shared_seeds(names)
    if len(seeds) < 2 or len(names) < 2:
        return None
    return np.array([s.curve(name, seeds=seeds) for name in names])


def seconds(s: Study, name: str) -> float:
    return float(np.median([sum(verdict.seconds(s, run).values()) for run in s.runs[name]]))


def overlaps(s: Study, names: list[str]) -> np.ndarray | None:
    """Jaccard index of what each two strategies bought with one seed, mean over the seeds that all have."""
    seeds = s.shared_seeds(names)
    if not seeds or len(s.labels_R) < 2:
        return None
    runs = {(name, run.seed): run for name in names for run in s.runs[name]}
    bought = [[verdict.bought(s, runs[name, seed]) for name in names] for seed in seeds]
    return np.mean([stats.jaccard(acquired_M) for acquired_M in bought], axis=0)


# -- the page --


def page(root: Path, studies: list[Study], figures: Path) -> str:
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    todo = [(s, figures, max(1, SHEETS // len(studies))) for s in studies]
    sections = [{"study": s} | shown for s, shown in zip(studies, shared_out(todo), strict=True)]
    across = verdict.across(studies)
    return environment.get_template("report.html").render(
        across=across, across_pictures=list(across_pictures(across, figures)) if across else [],
        across_words=verdict.across_sentences(across) if across else [],
        title=printable(root.resolve().name), sections=sections, plotly=get_plotlyjs(), version=al_bench.__version__,
        n_runs=sum(len(runs) for s in studies for runs in s.runs.values()),
        n_left_out=sum(len(s.left_out) for s in studies), closed=results.closed(root),
    )  # fmt: skip


def shared_out(todo: list[tuple]) -> list[dict[str, Any]]:
    """The section of each study. The figures take the time, so other processes draw a part of many."""
    n = min(len(todo), n_cores(), PROCESSES) if len(todo) > 3 else 1
    if n == 1:
        return [section(*arguments) for arguments in todo]
    found: list[Any] = [None] * len(todo)
    with multiprocessing.get_context("spawn").Pool(n - 1) as pool:
        others = [i for i in range(len(todo)) if i % n]
        theirs = pool.starmap_async(section, [todo[i] for i in others], chunksize=1)
        found[::n] = [section(*arguments) for arguments in todo[::n]]
        for i, shown in zip(others, theirs.get(), strict=True):
            found[i] = shown
    return found


def section(s: Study, figures: Path, most_sheets: int) -> dict[str, Any]:
    """What the page shows of one study; its figures are saved on the way."""
    there = bool(s.runs)
    return {
        "verdict": verdict.sentences(s),
        "table": table(s) if there else [],
        "how": how(s) if there else [],
        "curves": interactive(s) if there else "",
        "pictures": list(pictures(s, figures)) if there else [],
        "sheets": sheets(s, most_sheets),
        "planner": verdict.planner(s),
    }


def sheets(s: Study, most: int) -> list[tuple[str, str]]:
    """(run, data URL) of the images that some strategies picked, with their first seed."""
    found = []
    for run in (runs[0] for name, runs in s.runs.items() if name != CONTROL):
        with suppress(UserError):  # there is none, or it cannot be read
            sheet = read_file(run.folder / "acquired.jpg") if len(found) < most else b""
            found += [(run.name, f"data:image/jpeg;base64,{base64.b64encode(sheet).decode()}")] * bool(sheet)
    return found


def interactive(s: Study) -> str:
    """Learning curves to hover over and to toggle, as a part of a page."""
    import plotly.graph_objects as go

    looks = plots.style(name for name in s.runs if name != CONTROL) | {CONTROL: {"color": "#999999"}}
    figure = go.Figure()
    for name in s.runs:
        mean_R, low_R, high_R = 100 * plots.t_interval(s.curve(name)).clip(0, 1)
        colour = looks[name]["color"]
        common = {"legendgroup": name, "line_color": "#000000" if colour == "black" else colour}
        shown = html.escape(name)  # plotly reads a part of HTML in names
        if len(s.runs[name]) > 1:
            x, y = np.concatenate([s.labels_R, s.labels_R[::-1]]), np.concatenate([high_R, low_R[::-1]])
            band = {"fill": "toself", "opacity": 0.15, "hoverinfo": "skip", "showlegend": False, "line_width": 0}
            figure.add_scatter(x=x, y=y.round(3), **(common | band), mode="lines")
        figure.add_scatter(x=s.labels_R, y=mean_R.round(3), name=shown, mode="lines+markers", **common)
    if s.full is not None:
        figure.add_hline(100 * s.full, line_dash="dash", annotation_text=f"full data ({s.full:.1%})")
    figure.update_layout(
        template="plotly_white", height=460, margin={"l": 60, "r": 20, "t": 20, "b": 50}, hovermode="x unified",
        xaxis_title="Training labels", yaxis_title="Test accuracy (%)",
    )  # fmt: skip
    place = "curves-" + as_file_name("-".join(s.cell))
    return figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=place, config={"displaylogo": False, "responsive": True}
    )


if __name__ == "__main__":
    sys.exit(main())
