"""Helpers of several tests: configurations from the real conf/, runs in this process, and the real command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import warm
from hydra import compose, initialize_config_dir

from al_bench import config, loop, process, signals
from al_bench.models import first_fit
from al_bench.models.hardware import ALL_THREADS
from al_bench.models.learner import Learner
from al_bench.options import conf_dir
from al_bench.store import RunStore
from al_bench.strategies import PoolView

process.prepare()  # as the command does

QUICK = (
    "trainer.max_steps=20", "trainer.progress=false", "budget.initial=20", "budget.query=10", "budget.rounds=3",
    "budget.validation=20",
)  # fmt: skip
STARTED = ("-m", "al_bench")  # the command in a Python of its own


def asked(*overrides: str) -> config.Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config.read(compose("config", list(overrides)))


def run_here(folder: Path, *overrides: str) -> RunStore:
    """A run in this process. It trains its first round itself, unless `overrides` name another cache."""
    forget_first_fits(folder / "cache")
    c = asked(f"results_dir={folder}", f"cache_dir={folder}/cache", *QUICK, *overrides)
    store = RunStore(c)
    with store.at_work():
        loop.run(c, store)
    return store


def command(
    folder: Path, *arguments: str, program: tuple[str, ...] | None = None, **kwargs
) -> subprocess.CompletedProcess[str]:
    """`python -m al_bench`, or a script, as a fork of one process (warm.py). For a program Python is started.

    Its first round trains itself, as in run_here.
    """
    forget_first_fits(Path(os.environ["AL_BENCH_CACHE"]))
    if program is None:
        return warm.run(folder, *arguments, **kwargs)
    return subprocess.run([sys.executable, *program, *arguments], cwd=folder, capture_output=True, text=True, **kwargs)


def forget_first_fits(cache: Path) -> None:
    shutil.rmtree(cache / first_fit.FOLDER, ignore_errors=True)


def lines_of(run_folder: Path) -> list[dict]:
    """Return the records without the fields that differ between two equal runs."""
    records = [json.loads(line) for line in (run_folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "peak_memory", "fit_from")} for record in records]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def view_of(log_probs_PSC):
    return PoolView(len(log_probs_PSC), log_probs_PSC.shape[2], log_probs_PSC)


def random_log_probs(p, s, c, *, scale=2.0, seed=0):
    return (scale * torch.randn(p, s, c, generator=seeded(seed))).log_softmax(-1)


def slow_draw(weights: list[float], rng: torch.Generator) -> int:
    """Draw a position in proportion to its weight with a plain loop."""
    left = float(torch.rand(1, dtype=torch.float64, generator=rng)) * sum(weights)
    for i, weight in enumerate(weights):  # noqa: B007
        left -= weight
        if left < 0:
            break
    return i


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["AL_BENCH_CACHE"] = f"{tempfile.gettempdir()}/al_bench_cache_{uuid.uuid4().hex}"  # not the user's
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["AL_BENCH_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def not_asked_to_stop() -> Iterator[None]:
    """A signal that a test sends is kept in this process until the next run begins. It is not to stop other tests."""
    yield
    signals._asked = None


@pytest.fixture(autouse=True)
def no_run_goes_on() -> Iterator[None]:
    """A session that is left may compute a little longer. It is not to set the number of threads of another test."""
    yield
    for thread in threading.enumerate():
        if thread.name == process.COMPUTING:
            thread.join(60)


@pytest.fixture(autouse=True)
def no_first_fit_of_another_test() -> None:
    forget_first_fits(Path(os.environ["AL_BENCH_CACHE"]))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other after every tiny layer
    yield
    torch.set_num_threads(before)


@pytest.fixture
def all_threads() -> None:
    """As in a process of its own, which records of this one are compared with: a run sets the number of threads."""
    torch.set_num_threads(ALL_THREADS)


@pytest.fixture
def shared() -> Path:
    """Return the folder of real images and weights beside a checkout. It is not part of the project."""
    folder = Path(os.environ.get("AL_BENCH_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    return folder


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter. Those of pytest are closed, and each pytest that starts closes them again."""
    with tempfile.TemporaryDirectory(prefix="al_bench_open_") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """Mount a disk of 64 KiB. It is not below tmp_path, because pytest could not remove it after a killed session."""
    place = Path(tempfile.mkdtemp(prefix="al_bench_tiny_disk_"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        place.rmdir()
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)
    place.rmdir()


@contextmanager
def pulled_plug(n_labelled: int) -> Iterator[None]:
    """Within it a run breaks after the fit on so many labels, and the error is caught."""
    validate = Learner.validate

    def broken(learner, net, pool):
        if len(pool.labelled_L) == n_labelled:
            raise RuntimeError("pulled the plug")
        return validate(learner, net, pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "validate", broken)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            yield
