"""The report of a results folder: one page that opens from disk, tables, figures. Only reads results.

    al-bench report results/my_study [--metric macro_f1] [--with results/frozen_features]

Written into <folder>/report/: index.html (self-contained), verdict.txt, summary.csv, .md and .tex, rounds.csv,
figures/*.png and *.pdf. By another metric than accuracy into <folder>/report-<metric>/, with
--lower-is-better into <folder>/report-<metric>-lower/. With the runs of a published study beside one's own into
<folder>/report-with-<study>/.
"""

import argparse
import base64
import hashlib
import io
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import filelock
import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from PIL import Image

import al_bench
from al_bench import process
from al_bench.analysis import compare, figures, published, results, rounds, tables, verdict
from al_bench.analysis.canvas import new_figure
from al_bench.analysis.compare import CONTROL, Across, Comparison
from al_bench.analysis.family import METHODS
from al_bench.analysis.figures import Drawing
from al_bench.analysis.metric import ACCURACY, METRICS, Metric, check_recorded, check_target, named
from al_bench.analysis.published import Published
from al_bench.analysis.results import Run
from al_bench.analysis.tables import Section
from al_bench.errors import UserError, told
from al_bench.files import read_file, write_atomically
from al_bench.provenance import n_cores
from al_bench.recipe import as_file_name
from al_bench.text import as_cell, printable

SHEETS = 12  # contact sheets on a page, to keep it light
LEFT_OUT = 5  # runs named on the screen
PROCESSES = 4  # at the most; each holds 0.2 GB
NOT_DRAWN = "This figure could not be drawn"


@told
def main(arguments: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="al-bench report", description="Write the report of a results folder.")
    ask.add_argument("folder", type=Path, help="results, results/my_study, or a folder further down")
    ask.add_argument("--metric", default=ACCURACY.name, help="the recorded metric to judge by: macro_f1, nll, ...")
    ask.add_argument("--lower-is-better", action="store_true", help="of a metric of your own: lower values are better")
    ask.add_argument("--target", type=float, help="the value to count labels to; of a share a fraction: 0.9")
    ask.add_argument("--test", choices=[*METHODS], default="max_t", help="of all strategies against random")
    ask.add_argument("--with", dest="beside", type=Path, help="a published study, to compare with: its folder")
    options = ask.parse_args(arguments)
    metric = named(options.metric, options.lower_is_better)
    with published.opened(options.beside) if options.beside else nullcontext() as beside:
        page = write(options.folder, options.target, metric, options.test, beside)
    if metric.name not in METRICS and metric.higher_is_better:
        taken = f"higher values of {metric.words} are taken as better. If lower ones are, add --lower-is-better."
        print(f"al_bench: {taken}", file=sys.stderr)
    print(results.in_words(page))
    return 0


def write(
    root: Path, target: float | None = None, metric: Metric = ACCURACY, test: str = "max_t",
    beside: Published | None = None,
) -> Path:  # fmt: skip
    """Write the report of all runs below root and return the path of its page. Raises UserError.

    beside: a study whose runs are compared as if they were below root.
    """
    check_target(metric, target)
    folder = root / folder_name(metric, beside)
    made_of, (runs, unmatched) = results.stamp(root), read(root, beside)
    if metric is not ACCURACY:  # without runs that have the metric no folder is made
        check_recorded(metric, (name for run in runs for name in run.metrics))
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock"):  # of sweeps of one study that end together
            if (now := results.stamp(root)) != made_of:  # changed while another process held the lock
                made_of, (runs, unmatched) = now, read(root, beside)
            found = compare.comparisons(runs, metric, target, test)
            sections = [tables.section(c) for c in found]
            for old in (folder / "figures").glob("*.p*"):
                old.unlink()
            lacking = [*results.closed_folders(root), *unmatched]
            write_atomically(folder / results.VERDICT, as_text(sections) + "".join(f"{words}\n" for words in lacking))
            write_atomically(folder / "summary.md", as_markdown(sections))
            write_atomically(folder / "index.html", page(root, sections, lacking, folder / "figures"))
            write_atomically(folder / "summary.csv", as_csv(sections))
            write_atomically(folder / "summary.tex", as_latex(sections))
            write_atomically(folder / "rounds.csv", rounds.as_csv(runs))
            write_atomically(folder / results.STAMP, json.dumps(made_of) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None
    return folder / "index.html"


def read(root: Path, beside: Published | None) -> tuple[list[Run], list[str]]:
    """The runs to report on, and sentences on those of ours that have no match in the other study."""
    ours = results.find(root)
    return beside.joined(ours) if beside else (ours, [])


def folder_name(metric: Metric, beside: Published | None = None) -> str:
    """Both directions of a user's metric have a folder of their own, and so has each study beside one's own."""
    parts = ["report"]
    if metric is not ACCURACY:
        parts.append(as_file_name(metric.name))
        parts += ["lower"] if metric.name not in METRICS and not metric.higher_is_better else []
    if beside:
        parts += ["with", as_file_name(beside.name)]
    return "-".join(parts)


# -- a section as text --


def as_text(sections: list[Section]) -> str:
    """The verdict of each comparison, what is to be known of it and what it leaves out, a line each."""
    lines = []
    for s in sections:
        c = s.comparison
        left_out = [f"Left out: {who}: {why}" for who, why in c.left_out[:LEFT_OUT]]
        if (more := len(c.left_out) - LEFT_OUT) > 0:
            left_out.append(f"Left out: {more} more, which the page names.")
        lines += [f"{s.title}:", *(f"  {words}" for words in (*s.sentences, *c.notes, *left_out))]
    return "\n".join([*lines, ""])


def as_csv(sections: list[Section]) -> str:
    import pandas as pd  # memory that the processes that draw can do without

    return pd.DataFrame([row for s in sections for row in s.rows]).map(as_cell).to_csv(index=False)


def as_markdown(sections: list[Section]) -> str:
    parts = []
    for s in sections:
        c = s.comparison
        parts += [f"### {md(s.title)}", ""]
        parts += [f"- {md(words)}" for words in s.sentences] + [""]
        if s.table:
            parts += [markdown_table(s), "", *(md(words) for words in s.method_notes), ""]
        parts += [f"- {md(words)}" for words in c.notes]
        parts += [f"- Left out: {md(who)}: {md(why)}" for who, why in c.left_out] + [""]
    return "\n".join(parts)


def markdown_table(s: Section) -> str:
    return markdown_rows([*s.table[0]], [[*map(md, row.values())] for row in s.table])


def markdown_rows(heads: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def md(text: str) -> str:
    return re.sub(r"([\\`*_<>|]|(?<=\])\()", r"\\\1", text).replace("\n", " ")


def as_latex(sections: list[Section]) -> str:
    import pandas as pd

    return "\n".join(
        pd.DataFrame(s.table).to_latex(index=False, escape=True, caption=tex(s.title), position="htbp")
        for s in sections
        if s.table
    )


def tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))


# -- figures as files --


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    name: str  # of the files figures/<name>.png and .pdf
    png: str = ""  # as a data URL; none where it could not be drawn


def pictures(makers: dict[str, Callable[[], Drawing | None]], folder: Path, prefix: str) -> Iterator[Picture]:
    """Each figure, saved. One that fails is said, and costs no other."""
    for name, make in makers.items():
        title = name.replace("_", " ").capitalize()
        try:
            if drawing := make():
                title = drawing.title
                yield save(drawing, folder, file_name(f"{prefix}-{name}"))
        except OSError:
            raise
        except Exception as error:
            yield Picture(title, f"{NOT_DRAWN}: {printable(str(error))}", name)


def file_name(name: str) -> str:
    """A file system takes names of at most 255 bytes."""
    name = as_file_name(name)
    return name if len(name.encode()) <= 200 else f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def save(drawing: Drawing, folder: Path, name: str) -> Picture:
    # Each is drawn once: figure.savefig draws a figure that has a layout twice, and the drawing takes the time.
    figure = new_figure()
    drawing.draw(figure.subplots())
    dpi, figure.dpi = figure.dpi, 200
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(folder / f"{name}.png")
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    figure.dpi = dpi
    figure.set_layout_engine("none")  # it stays as it is, and need not be worked out again
    FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf", metadata={"CreationDate": None})
    small = io.BytesIO()
    drawn.quantize(128, dither=Image.Dither.NONE).save(small, "png")
    png = f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
    return Picture(drawing.title, drawing.caption, name, png)


def pictures_across(a: Across, folder: Path) -> list[Picture]:
    makers = {name: partial(figure, a) for name, figure in figures.FIGURES_ACROSS.items()}
    return [*pictures(makers, folder, "all")]


# -- the page --


@dataclass(frozen=True)
class Shown:
    """What the page shows of a comparison besides its section."""

    curves: str  # HTML
    pictures: list[Picture]
    sheets: list[tuple[str, str]]


def page(root: Path, sections: list[Section], lacking: list[str], folder: Path) -> str:
    """lacking: sentences on what could not be read or compared. folder: of the figures, which are saved on the way."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found = [s.comparison for s in sections]
    todo = [(c, folder, max(1, SHEETS // len(found))) for c in found]
    across = compare.across(found)
    return environment.get_template("report.html").render(
        across=across, across_pictures=pictures_across(across, folder) if across else [],
        across_words=verdict.across_sentences(across) if across else [],
        title=printable(root.resolve().name), sections=[*zip(sections, shared_out(todo), strict=True)],
        metric=found[0].metric, accuracy=ACCURACY, plotly=get_plotlyjs(), version=al_bench.__version__,
        n_runs=sum(len(runs) for c in found for runs in c.runs.values()),
        n_left_out=sum(len(c.left_out) for c in found), lacking=lacking,
    )  # fmt: skip


def shared_out(todo: list[tuple[Comparison, Path, int]]) -> list[Shown]:
    """What is shown of each comparison. The figures take the time, so other processes draw a part of many."""
    n = min(len(todo), n_cores(), PROCESSES) if len(todo) > 3 else 1
    if n == 1:
        return [shown(*arguments) for arguments in todo]
    found: list[Shown | None] = [None] * len(todo)
    with multiprocessing.get_context("spawn").Pool(n - 1, initializer=process.prepare) as pool:
        others = [i for i in range(len(todo)) if i % n]
        theirs = pool.starmap_async(shown, [todo[i] for i in others], chunksize=1)
        found[::n] = [shown(*arguments) for arguments in todo[::n]]
        for i, there in zip(others, theirs.get(), strict=True):
            found[i] = there
    return found


def shown(c: Comparison, folder: Path, most_sheets: int) -> Shown:
    if not c.runs:
        return Shown("", [], [])
    drawn = [*pictures(figures.makers(c), folder, "-".join(c.setting))]
    return Shown(figures.interactive(c), drawn, sheets(c, most_sheets))


def sheets(c: Comparison, most: int) -> list[tuple[str, str]]:
    """(run, data URL) of the images that some strategies picked, with their first seed."""
    found = []
    for run in (runs[0] for name, runs in c.runs.items() if name != CONTROL):
        with suppress(UserError):  # there is none, or it cannot be read
            sheet = read_file(run.folder / "acquired.jpg") if len(found) < most else b""
            found += [(run.name, f"data:image/jpeg;base64,{base64.b64encode(sheet).decode()}")] * bool(sheet)
    return found
