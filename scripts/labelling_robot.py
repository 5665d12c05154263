"""Label images by keys in a browser, and compare the records with the benchmark's on the same images and labels.

    python scripts/labelling_robot.py --images-from train.zip [--images 2000] [--labels 225] [--weights FILE]

Draws random images, writes them into a flat folder with names that tell no class, and starts `al-bench label` on it. A
robot that knows the classes presses their keys in headless Chromium until the run has its labels. Then
`python -m al_bench` runs with the same seed, splits, budget and strategy. The records of both are compared line by
line, apart from the times. The exit code is 1 if they differ. Writes results/labelling_robot.json.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import check_results
from browser import Page, chromium

from al_bench.config import DatasetConfig
from al_bench.data.arrays import Source
from al_bench.data.files import ImageFiles, files_in
from al_bench.data.sources import LabelledFiles, from_files
from al_bench.labelling.images import list_images
from al_bench.labelling.labels import read_lines
from al_bench.labelling.settings import composed
from al_bench.provenance import machine

OUT = check_results.RESULTS / "labelling_robot.json"
BATCH = 25  # budget.initial and budget.query of `al-bench label`
TIMES = {"seconds", "peak_memory", "fit_from"}  # fields of a record that differ between equal runs
OWN = {
    "dataset",
    "dataset.classes",
    "results_dir",
    "study",
}  # settings that a labelled folder and a benchmark differ in
KEYS = "123456789abcdefghijklm"  # of the classes

# What the page says in JavaScript: the name of the image that can be answered now, or ""; whether all answers are kept.
READY = "current && seen && !waiting && pending.length < UNSENT ? current.text : ''"
IDLE = "line.then(() => pending.length === 0 && !waiting)"
ENDED = "state.state === 'finished' && !current || state.state === 'failed'"


def press_keys(page: Page, key_of: Callable[[str], str]) -> list[tuple[str, float]]:
    """Answer until the run has ended. Returns (image, seconds until it could be answered), in their order."""
    found, start = [], time.perf_counter()
    while (name := page.until(f"{ENDED} ? ' ' : {READY}", 600)) != " ":
        found.append((name, time.perf_counter() - start))
        start = time.perf_counter()
        page.press(key_of(name))
    page.until(IDLE)
    return found


def class_of(name: str) -> str:
    """cat of cat.0.jpg, as Kaggle names it, and of cat/0.jpg."""
    folder, _, file = name.rpartition("/")
    return file.split(".")[0] if file.count(".") > 1 else folder.rpartition("/")[2]


def drawn(files: ImageFiles, n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of n random images, each content once."""
    names, seen = [*files.names], set()
    random.Random(seed).shuffle(names)
    for name in names:
        content = files.read(name)
        digest = hashlib.sha256(content).digest()
        if len(seen) < n and digest not in seen:
            seen.add(digest)
            yield name, content


def make_folder(home: Path, files: ImageFiles, n: int, seed: int) -> dict[str, str]:
    """Write the images into home/photos and their classes into home/truth.json. Returns the class by name."""
    truth = {}
    (home / "photos").mkdir(parents=True)
    for number, (name, content) in enumerate(drawn(files, n, seed)):
        new = f"IMG_{number:04d}{Path(name).suffix}"
        (home / "photos" / new).write_bytes(content)
        truth[new] = class_of(name)
    (home / "truth.json").write_text(json.dumps(truth))
    return truth


def known(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """The benchmark's data set: the same folder, with the classes of truth.json."""
    truth = json.loads(Path(c.root).with_name("truth.json").read_text())
    classes = tuple(sorted({*truth.values()}))
    labels = {name: classes.index(kind) for name, kind in sorted(truth.items())}
    return from_files(c, LabelledFiles(files_in(c.root), labels, classes), model_size, cache_dir)


def surroundings(cache: Path) -> dict[str, str]:
    """Of a command: with this file to be imported, and a cache of its own, so that no run takes another's features."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "AL_BENCH_CACHE": str(cache)}


@contextmanager
def labelling(home: Path, classes: list[str], overrides: list[str]) -> Iterator[str]:
    """`al-bench label` at work. Yields the address of its page; it is ended afterwards."""
    start = [sys.executable, "-m", "al_bench", "label", "photos", "--classes", ",".join(classes), "--no-browser"]
    process = subprocess.Popen(
        [*start, *overrides], cwd=home, env=surroundings(home / "cache-label"), stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        while "http://" not in (line := process.stdout.readline()):
            if not line:
                sys.exit("al-bench label has ended; its message is above.")
        yield line.split()[-1]
    finally:
        process.terminate()  # Ctrl-C would be ignored where this script runs in the background of a shell
        process.communicate(timeout=60)


def benchmark(home: Path, overrides: list[str]) -> None:
    """The same run by `python -m al_bench`: with the settings that `al-bench label` has made of `overrides`."""
    settings = composed(list_images(home / "photos"), overrides).overrides
    carried = [setting for setting in settings if setting.split("=")[0] not in OWN]
    own = ["dataset=image_folder", "dataset._target_=labelling_robot.known", "dataset.on_bad_image=skip"]
    place = [f"results_dir={home}/results", "study=benchmark"]
    done = subprocess.run(
        [sys.executable, "-m", "al_bench", *own, *carried, *place], cwd=home, stdout=subprocess.DEVNULL,
        env=surroundings(home / "cache-benchmark"),
    )  # fmt: skip
    if done.returncode:
        sys.exit("The benchmark has failed; its message is above.")


def records_below(folder: Path) -> list[dict]:
    """The records of the only run below a folder, without times."""
    (file,) = folder.rglob("rounds.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def curve(records: list[dict]) -> dict[str, list]:
    return {
        "labels": [record["n_labelled"] for record in records],
        "accuracy": [record["metrics"]["accuracy"] for record in records],
    }


def compared(ours: list[dict], theirs: list[dict]) -> list[str]:
    """What differs: `round 3: metrics`, or the number of rounds."""
    both = enumerate(zip(ours, theirs, strict=False))
    differ = [f"round {r}: {key}" for r, (a, b) in both for key in sorted(a | b) if a.get(key, ...) != b.get(key, ...)]
    return differ + ([f"{len(ours)} and {len(theirs)} rounds"] if len(ours) != len(theirs) else [])


def waits(answered: list[tuple[str, float]], rounds: dict[str, int | None]) -> dict[str, float]:
    """Medians in seconds: to the next image of a batch, and to the first image of the next one. rounds: by image."""
    within, between = [], []
    for (before, _), (name, seconds) in zip(answered, answered[1:], strict=False):
        (within if rounds[before] == rounds[name] else between).append(seconds)
    return {"within_a_batch": round(median(within), 3), "between_batches": round(median(between), 3)}


def run(home: Path, files: ImageFiles, a: argparse.Namespace) -> dict:
    truth = make_folder(home, files, a.images, a.seed)
    classes = sorted({*truth.values()})
    overrides = [f"seed={a.seed}", f"budget.rounds={(a.labels - BATCH) // BATCH}", *a.overrides]
    overrides += [f"model.weights={a.weights.resolve()}"] if a.weights else []
    start = time.perf_counter()
    with labelling(home, classes, overrides) as url, chromium(home / "browser") as pipe:
        page = pipe.open(url)
        page.until("typeof state !== 'undefined' && state !== null")
        answered = press_keys(page, lambda name: KEYS[classes.index(truth[name])])
    took = time.perf_counter() - start
    lines = read_lines(home / "photos-labels" / "labels.jsonl")
    benchmark(home, overrides)
    ours, theirs = records_below(home / "photos-labels"), records_below(home / "results")
    roles = [line.role for line in lines]
    return {
        "machine": machine(), "images": len(truth), "classes": classes, "settings": a.overrides, "seed": a.seed,
        "keys": len(answered), "test_images": roles.count("test"), "training_labels": roles.count("train"),
        "all_answers_right": all(line.answer == truth[line.path] for line in lines),
        "seconds": {"in_all": round(took, 1)} | waits(answered, {line.path: line.round for line in lines}),
        "label": curve(ours), "benchmark": curve(theirs), "differences": compared(ours, theirs),
    }  # fmt: skip


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--images-from", required=True, help="a folder or a zip: cat.0.jpg or cat/0.jpg names the class")
    ask.add_argument("--images", type=int, default=2000)
    ask.add_argument("--labels", type=int, default=225, help="for training, in batches of 25; test images come on top")
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--out", type=Path, default=OUT)
    ask.add_argument("overrides", nargs="*", metavar="key=value", help="further settings, of both runs")
    a = ask.parse_args()
    with tempfile.TemporaryDirectory(prefix="labelling_robot_") as home:
        found = run(Path(home), files_in(a.images_from), a)
    a.out.write_text(json.dumps(found, indent=1) + "\n")
    for labels, ours, theirs in zip(*found["label"].values(), found["benchmark"]["accuracy"], strict=False):
        print(f"{labels:>5} labels  {ours:7.2%} by keys  {theirs:7.2%} by the benchmark")
    print(f"{found['keys']:,} keys. {'; '.join(found['differences'][:9]) or 'All records are equal'}.")
    if found["differences"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
