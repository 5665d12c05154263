"""What al_bench sets for the whole process. Nothing here imports torch, and no import of al_bench sets any of it."""

import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

LOW = 10  # a priority; 0 is usual and 19 the lowest

# Lightning's warnings that concern no run of ours: whole batches need no loader processes, torch deprecates a part that
# Lightning uses, and a run is one process even where srun is installed. Matplotlib draws a box for each letter that its
# font lacks. Hydra merges conf/hydra/launcher/ray.yaml into the Ray launcher's own settings, which have the same
# name. A version that does not will take ours alone, and they are complete.
QUIET = (
    ".*does not have many workers.*",
    ".*LeafSpec.*is deprecated.*",
    "The `srun` command is available.*",
    r"Glyph \d+ .* missing from",
    "Matplotlib currently does not support",
    r"\s*'hydra/launcher/ray' is validated against",
)

COMPUTING = "al_bench run"  # the name of a thread that may still compute when the command ends

_limited = threading.RLock()


def end(code: int) -> NoReturn:
    """Exit, at once where a thread still computes: torch would abort the process while Python ends."""
    if any(thread.name == COMPUTING for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def prepare() -> None:
    """Called by the command, in each process that a sweep starts, and again once Lightning is imported.

    Calling it again does no harm.
    """
    logging.getLogger("al_bench").setLevel(logging.DEBUG)  # run.log holds everything; the screen has its own level
    for name in ("pytorch_lightning", "lightning_fabric"):  # they announce the hardware at every Trainer
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    _keep_freed_memory()
    # oneDNN keeps what it prepared for each convolution and each size of a batch, and the pool's last batch has another
    # size in every round. The default, 1,024 of them, adds 100 MB; with 256 the largest nets lose no time.
    for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "256")


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks until `return_freed_memory`.

    By default it returns blocks over 32 MB at once, and each step then gets its activations page by page from the
    kernel: on a CPU the small CNN needs twice the time to predict, and a quarter more to train in batches of 128.
    """
    _libc("mallopt", -3, 2**30)  # M_MMAP_THRESHOLD: blocks up to this size come from the heap
    _libc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not cut back below this


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it numpy, scipy and scikit-learn compute with one thread: several add up in another order each time.

    That limit holds for the whole process, and the first of two threads to end would lift it for the other one. So they
    take turns.
    """
    from threadpoolctl import threadpool_limits  # milliseconds that a command without numpy need not wait

    with _limited, threadpool_limits(1):
        yield


def step_back() -> None:
    """Let the calling thread, and all that it starts, compute only where no other thread of this process wants to.

    On Linux alone: elsewhere a priority is that of the whole process.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(LOW, os.getpriority(os.PRIO_PROCESS, thread)))


def return_freed_memory() -> None:
    """Return freed memory to the system. Called after each fit and prediction, else it would add up over the run."""
    _libc("malloc_trim", 0)


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _libc(function: str, *arguments: int) -> None:
    if sys.platform == "linux" and (call := getattr(ctypes.CDLL(None), function, None)):
        call(*arguments)
