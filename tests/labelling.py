"""Helpers of the tests on labelling: a folder of digits as images, a robot that knows them, the benchmark's run."""

from collections.abc import Callable
from pathlib import Path

from conftest import command, lines_of
from PIL import Image
from sklearn.datasets import load_digits

from al_bench.labelling.session import Session

CLASSES = tuple(f"c{digit}" for digit in range(10))
SMALL = ("dataset.image_size=16", "budget.initial=20", "budget.query=10", "budget.rounds=4")


def digits_in(folder: Path, n: int = 300) -> Path:
    """A folder of n images, each in a sub-folder that names its class."""
    images, labels = load_digits(return_X_y=True)
    for i in range(n):
        home = folder / f"c{labels[i]}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[i].reshape(8, 8) * 15.9).astype("uint8")).save(home / f"{i:04d}.png")
    return folder


def truth(path: str) -> str:
    return path.split("/")[0]


def cached(folder: Path) -> str:
    return f"cache_dir={folder}/cache"


def opened(folder: Path, *overrides: str, classes: tuple[str, ...] = CLASSES, **options) -> Session:
    """A session on the folder `photos` in this folder."""
    return Session(folder / "photos", classes, (*SMALL, cached(folder), *overrides), **options)


def label_all(session: Session, answer: Callable[[str], str] = truth, at_once: int = 3) -> list[str]:
    """Answer until the run has ended. Returns the paths that were asked for."""
    asked = []
    while session.wait(60).state == "labelling":
        for item in session.next(at_once):
            session.answer(item.path, answer(item.path), seconds=0.1)
            asked.append(item.path)
    return asked


def benchmarked(session: Session, *overrides: str) -> list[dict]:
    """The records of `python -m al_bench` on the same images, with the same splits, seed and budget."""
    home, c = session.home.parent, session.base
    done = command(
        home, "dataset=image_folder", f"dataset.root={home}/photos", "dataset.name=photos", "model=pca", *SMALL,
        f"dataset.test_fraction={c.dataset.test_fraction!r}", f"strategy={c.strategy['name']}", "study=benchmark",
        "budget.start=typiclust", "trainer.progress=false", "trainer.predict_batch_size=16",
        "dataset.jpeg_scaling=true", cached(home), *overrides,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = (home / "results/benchmark").glob("*/*/*/*/seed=0")
    return lines_of(found)
