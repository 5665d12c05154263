"""al-bench finish FOLDER: labels, a folder a class, a model with its card, and predictions for all other images."""

import argparse
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from al_bench import process
from al_bench.errors import told
from al_bench.files import accessible, write_atomically
from al_bench.labelling import card, finished_model, links, tables
from al_bench.labelling.copies import left_out
from al_bench.labelling.final import Final, Labelled, labelled, tensors_of, train
from al_bench.labelling.finished_model import FinishedModel
from al_bench.labelling.labels import TRAIN
from al_bench.labelling.settings import plain
from al_bench.labelling.tables import path_cell
from al_bench.text import one_line, printable

CONFIDENCE = 0.95
RUNNERS_UP = 2
PREDICTED = [
    "path",
    "class",
    "probability",
    *(f"{w}_{i}" for i in range(2, 2 + RUNNERS_UP) for w in ("class", "probability")),
]
SEVERAL = 5  # labels of a class, and eight times as many in all, with fewer of which strategies are not compared
CARRIED = ("model", "features", "trainer", "cache_dir")  # groups whose settings the benchmark takes over
CARRIED_KEYS = ("dataset.image_size", "dataset.antialias", "dataset.white", "dataset.max_pixels")


@told
def main(arguments: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="al-bench finish", description="Make a model of all labels of a folder.")
    ask.add_argument("folder", help="the folder of images that was labelled")
    ask.add_argument(
        "--accept", type=float, default=CONFIDENCE, metavar="CONFIDENCE", help="of accept.csv, 0 to 1: 0.95"
    )
    ask.add_argument("--out", type=Path, help="the folder to write into; usually FOLDER-labels/finished")
    options = ask.parse_args(arguments)
    if not 0 <= options.accept <= 1:
        ask.error(f"--accept {options.accept}: a probability from 0 to 1")
    process.prepare()  # again: importing Lightning sets its own log levels
    found = labelled(options.folder)
    out = options.out or found.home / "finished"
    print(printable(write(train(found), out, options.accept)))
    return 0


def write(final: Final, out: Path, confidence: float) -> str:
    """Write all files. Returns what they are, in sentences. Raises UserError."""
    found, facts = final.labelled, card.facts(final)
    command = benchmark(found, out)
    with accessible(out, "written", "--out"):
        out.mkdir(parents=True, exist_ok=True)
        tables.write(out / "labels.csv", *_labels(found))
        copies = links.make(out / "classes", _class_links(found))
        write_atomically(out / "card.md", card.markdown(final, facts, confidence, command))
    finished_model.write(out / finished_model.FILE, FinishedModel(facts, tensors_of(final)))
    rest = predicted(final)
    accepted = [row for row, answer in rest if answer is None and float(row[2]) >= confidence]
    review = [[*row, answer] for row, answer in rest[::-1] if answer is not None or float(row[2]) < confidence]
    tables.write(out / "predictions.csv", PREDICTED, sorted(row for row, _ in rest))
    tables.write(out / "accept.csv", PREDICTED, accepted)
    tables.write(out / "review.csv", [*PREDICTED, "answer"], review)
    return _said(final, out, confidence, command, (len(accepted), len(review), copies))


def _labels(found: Labelled) -> tuple[list[str], Iterator[list]]:
    header = ["path", "label", "role", "sha256", "round", "seconds", "who", "time"]
    return header, (
        [path_cell(a.path), a.answer, a.role, a.sha256, a.round, a.seconds, a.who, a.time]
        for a in found.answers.values()
    )


def _class_links(found: Labelled) -> dict[str, Path]:
    """The file of each image that has a class, by its path in the folder of classes."""
    folders = links.class_folders(found.settings.classes)
    files = ((label, found.listing.file(path)) for path, label in found.answers.items() if label.of_class)
    return {f"{folders[label.answer]}/{label.path}": file for label, file in files if file.is_file()}


def predicted(final: Final) -> list[tuple[list[str], str | None]]:
    """(row of a table, answer), for each image without a class, the surest first. answer: skip, unsure or None."""
    answers = final.labelled.answers
    rows = [(path, row) for path, row in final.rows.items() if path not in answers or not answers[path].of_class]
    said = [answers[path].answer if path in answers else None for path, _ in rows]
    cells = [cells_of(path, final.classes, final.probs_NC[row].tolist()) for path, row in rows]
    return sorted(zip(cells, said, strict=True), key=lambda found: -float(found[0][2]))


def cells_of(path: str, classes: Sequence[str], probs_C: Sequence[float]) -> list[str]:
    """The row of an image: its path, and the likeliest classes with their probabilities."""
    likely = sorted(zip(classes, probs_C, strict=True), key=lambda found: -found[1])[: 1 + RUNNERS_UP]
    cells = [cell for name, prob in likely for cell in (name, f"{prob:.4f}")]
    return [path_cell(path), *cells, *[""] * (len(PREDICTED) - 1 - len(cells))]


def benchmark(found: Labelled, out: Path) -> str | None:
    """The command that compares strategies on the folder of classes. None if the labels are too few."""
    counts = Counter(label.answer for label in found.answers.values() if label.of_class)
    if min(counts.values()) < SEVERAL or counts.total() < 8 * SEVERAL:
        return None
    n = round(0.8 * counts.total())  # that are not tested
    query = max(5, min(25, n // 12))
    rounds = max(1, min(10, n // (2 * query) - 1))
    own = found.config.strategy["name"]
    strategies = dict.fromkeys(["random", own, "margin"])
    carried = [
        o for o in found.made.overrides if o.startswith(CARRIED_KEYS) or o.split("=")[0].split(".")[0] in CARRIED
    ]
    words = [
        "al-bench", "-m", "dataset=image_folder", f"dataset.root={plain(str((out / 'classes').absolute()))}",
        f"dataset.name={plain(found.listing.folder.name)}", "dataset.on_bad_image=skip",
        f"dataset.jpeg_scaling={str(bool(found.config.dataset.jpeg_scaling)).lower()}", *carried,
        f"strategy={','.join(strategies)}", "seed=range(7)", f"budget.initial={query}", f"budget.query={query}",
        f"budget.rounds={rounds}", f"results_dir={plain(str(found.home))}", "study=benchmark",
    ]  # fmt: skip
    return shlex.join(words)


def _said(final: Final, out: Path, confidence: float, command: str | None, sizes: tuple[int, int, int]) -> str:
    """sizes: accepted images, images to review, copies in the class folders."""
    accepted, review, copies = sizes
    found = final.labelled
    counts = Counter(label.answer for label in found.answers.values() if label.of_class)
    missing = [name for name in final.classes if name not in {*found.of(TRAIN).values()}]
    few = [f"No training image is {one_line(name)}, so the model does not know this class." for name in missing]
    few += left_out([path for path in found.listing.paths if path not in final.rows])
    few += [f"{copies:,} images of classes/ are copies: this disk has no links."] if copies else []
    by_class = ", ".join(f"{one_line(name)} {counts[name]:,}" for name in final.classes)
    compare = f"Too few labels to compare strategies on them: {SEVERAL} of each class and {8 * SEVERAL} in all."
    if command:
        why = "Some of these were chosen, so differences are smaller than on a random sample."
        compare = f"Compare strategies on these labels. {why}\n{command}"
    return "\n".join([
        f"Accuracy on random test images: {card.accuracy(final)}.",
        f"{card.how_trained(final)} Temperature {final.temperature:.2f}, {final.calibration}.",
        *few, "",
        f"{out}/",
        f"  labels.csv         {len(found.answers):,} answers",
        f"  classes/           {counts.total():,} images: {by_class}",
        f"  {finished_model.FILE}  the model; card.md describes it",
        f"  predictions.csv    {accepted + review:,} images without a class",
        f"  accept.csv         {accepted:,} of them, at least {confidence:.0%} sure; error "
        f"{card.error_above(final, confidence)}",
        f"  review.csv         {review:,} others, the least sure first", "",
        compare, "",
        f"New images: al-bench predict {shlex.quote(str(out))} FOLDER",
    ])  # fmt: skip
