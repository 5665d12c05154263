"""Check al_bench on this machine's GPU in about five minutes: speed, resuming, strategies, memory, mixed precision.

    python scripts/gpu_check.py                 writes results/gpu_check.json, which names the device
    python scripts/gpu_check.py --device cpu    the same checks on a CPU with small sizes, as without a GPU

The checks:
    resume        a run that was killed by SIGKILL after a round and continued has the records of an undisturbed one
    memory        the peak of the undisturbed run against the estimate of plan=true
    throughput    training and prediction against a bare PyTorch loop on the same device, in turn; medians
    strategies    every strategy of conf/strategy chooses once
    precision     training in mixed precision ends with about the accuracy of float32

All images are made up or come with scikit-learn, and no weights are downloaded. Exits 1 if a check fails. Small sizes
say nothing about speed, so there a check of the throughput only needs both loops to work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import bench_spine
import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from al_bench import loop, plan, process
from al_bench.data import Dataset
from al_bench.data.pool import Pool
from al_bench.models import hardware
from al_bench.options import conf_dir, shipped, whole_strategies
from al_bench.provenance import machine
from al_bench.store import RunStore
from al_bench.strategies import load

OUT = conf_dir().parent / "results" / "gpu_check.json"
WIDTH = 512  # of the frozen features
# A fit has to reach this share of the bare loop's images per second, or to take at most so much longer for each batch.
# The second is for nets so small that a step of Lightning takes longer than the net.
RATIO, EXTRA_MS = 0.8, 2.0
PEAK = 2.0  # the most that a run may hold, relative to the estimate of plan=true
NO_PASSES = {"passes": None, "members": None, "candidates": None}  # what most strategies leave out of their yaml
QUERY = 10  # images that each strategy chooses
NOT_ON_GPU = ("the program", "predictions of the pool")  # of what plan=true adds up


@dataclass(frozen=True)
class Sizes:
    """How much a check computes."""

    limits: bool  # whether a slow loop fails
    seconds: float  # approximate length of one measurement
    repeats: int
    batch_size: int  # of training
    net: str  # timm's, for fine-tuning
    net_images: int  # images that it is measured on
    arms: tuple[str, ...]  # what is killed and resumed
    image_size: int  # that the small CNN sees there
    steps: int  # of a fit there
    query_steps: int  # of the fits before strategies choose
    seeds: int  # for each precision
    accuracy: float  # the most that mixed precision may lose or gain, a share


FULL = Sizes(True, 0.7, 5, 64, "resnet18", 2000, ("small_cnn", "finetune", "frozen"), 64, 200, 20, 3, 0.02)
SMALL = Sizes(False, 0.02, 1, 8, "test_resnet", 32, ("small_cnn",), 16, 20, 2, 1, 0.05)


@dataclass(frozen=True)
class Place:
    """Where a check runs: the device, the sizes, and a folder for its files."""

    device: torch.device
    sizes: Sizes
    folder: Path

    def settings(self, name: str, *overrides: str) -> list[str]:
        own = [f"results_dir={self.folder / name}", f"cache_dir={self.folder / name}_cache"]  # it takes no first fit
        return [*own, "trainer.progress=false", f"trainer.accelerator={self.device.type}", *overrides]


# Throughput


def throughput(place: Place) -> dict[str, Any]:
    rows = [row for contest in (small_cnn, finetune, frozen) for row in contest(place)]
    too_slow = slow(rows) if place.sizes.limits else []
    return {"passed": not too_slow, "too_slow": too_slow, "rows": rows}


def slow(rows: list[dict[str, Any]]) -> list[str]:
    return [row["what"] for row in rows if row["ratio"] < RATIO and row["extra_ms_per_batch"] > EXTRA_MS]


def small_cnn(place: Place) -> list[dict[str, Any]]:
    dataset, pool = bench_spine.data()
    x = torch.rand(4096, 3, bench_spine.SIZE, bench_spine.SIZE)
    return contests(place, "small CNN", ("model=small_cnn",), (dataset, pool), (bench_spine.bare_net, x))


def finetune(place: Place) -> list[dict[str, Any]]:
    """A timm net on images of its own size, so that neither loop scales them."""
    name, n = place.sizes.net, place.sizes.net_images
    size = timm.get_pretrained_cfg(name).input_size[-1]
    model = ("model=timm", f"model.name={name}", "model.pretrained=false")
    x = torch.rand(bench_spine.PREDICT_BATCH, 3, size, size)
    bare = (lambda: timm.create_model(name, num_classes=2).to(memory_format=torch.channels_last), x)
    return contests(place, f"{name}, fine-tuned", model, bench_spine.data(n, size), bare)


def frozen(place: Place) -> list[dict[str, Any]]:
    """The head of model.mode=frozen on features that are there already."""
    dataset, pool = bench_spine.data(size=8)
    features_ND = torch.randn(len(dataset.images), WIDTH)
    dataset = replace(dataset, images=features_ND, mean=features_ND.mean(0), std=features_ND.std(0))
    bare = (lambda: nn.Linear(WIDTH, 2), torch.randn(4096, WIDTH))
    return contests(place, "frozen head", ("model=timm", "model.mode=frozen"), (dataset, pool), bare)


def contests(
    place: Place,
    name: str,
    model: tuple[str, ...],
    ours: tuple[Dataset, Pool],
    bare: tuple[Callable[[], nn.Module], Tensor],
) -> list[dict[str, Any]]:
    """Training and prediction of one model against a bare loop.

    bare: what builds its net, and its images, PREDICT_BATCH of them or a multiple.
    """
    (dataset, pool), (build, x) = ours, bare
    x = x.to(place.device, memory_format=torch.channels_last) if x.ndim == 4 else x.to(place.device)
    y = torch.randint(0, 2, (len(x),), device=place.device)
    base = bench_spine.settings(
        *place.settings("throughput", *model),
        f"trainer.batch_size={place.sizes.batch_size}",
        f"trainer.predict_batch_size={bench_spine.PREDICT_BATCH}",
    )
    bf16, batch_size = hardware.precision(base.trainer) == "bf16-mixed", base.trainer.batch_size

    def new_net() -> nn.Module:
        return build().to(place.device)

    def fit(steps: int) -> float:
        return bench_spine.bare_fit(new_net(), x, y, batch_size, steps, bf16)

    def predict(n: int) -> float:
        return bench_spine.bare_predict(new_net(), x, n, bf16)

    fit(2), predict(batch_size)  # the first steps load the device's libraries
    steps = int(place.sizes.seconds * fit(5) / batch_size) + 1
    n = min(len(dataset.images), int(place.sizes.seconds * predict(bench_spine.PREDICT_BATCH)) + batch_size)
    c = replace(base, trainer=replace(base.trainer, max_steps=steps))
    both = {
        "train": (lambda: bench_spine.our_fit(c, dataset, pool), lambda: fit(steps), batch_size),
        "predict": (lambda: bench_spine.our_predict(c, dataset, n), lambda: predict(n), bench_spine.PREDICT_BATCH),
    }
    rows = []
    for what, (our_loop, bare_loop, batch) in both.items():
        row = bench_spine.in_turn(f"{name}: {what}", our_loop, bare_loop, place.sizes.repeats)
        rows.append(row | {"batch": batch, "extra_ms_per_batch": 1000 * batch * (1 / row["ours"] - 1 / row["bare"])})
    return rows


# Resuming, and the memory of the same runs


def arms(place: Place) -> dict[str, list[str]]:
    """The settings of the runs that are killed, by name."""
    net = ("model=timm", f"model.name={place.sizes.net}", "model.pretrained=false")
    models = {
        "small_cnn": ("model=small_cnn", f"dataset.image_size={place.sizes.image_size}", "strategy=bald"),
        "finetune": (*net, "strategy=badge"),
        "frozen": (*net, "model.mode=frozen", "strategy=margin"),
    }
    root = pictures(place.folder / "pictures")
    common = (
        "dataset=image_folder", f"dataset.root={root}", "dataset.name=gratings", "trainer.deterministic=true",
        f"trainer.max_steps={place.sizes.steps}", "budget.initial=40", "budget.query=20", "budget.rounds=3",
    )  # fmt: skip
    return {name: [*models[name], *common] for name in place.sizes.arms}


def pictures(root: Path) -> Path:
    """400 pictures of 64x64, in a folder for each of four classes: gratings of four directions, under noise."""
    if root.exists():
        return root
    rng = np.random.default_rng(0)
    down, right = np.mgrid[:64, :64] / 64
    for label in range(4):
        (root / f"direction_{label}").mkdir(parents=True)
        angle = np.pi * label / 4
        for i in range(100):
            wave = np.sin(20 * (down * np.cos(angle) + right * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
            pixels = 128 + 40 * wave[..., None] + rng.normal(0, 40, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"direction_{label}" / f"{i}.png")
    return root


def command(*overrides: str) -> subprocess.Popen[str]:
    """`python -m al_bench` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "al_bench", *overrides], cwd=conf_dir().parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What a command showed. Raises RuntimeError if it failed."""
    shown, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args[2:])} ended with exit code {process.returncode}: {shown[-2000:]}")
    return shown


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.rglob("rounds.jsonl") for line in path.read_text().splitlines()]


def resume(place: Place) -> dict[str, Any]:
    rows = [killed_and_resumed(place, name, settings) for name, settings in arms(place).items()]
    return {"passed": all(row["equal"] for row in rows), "rows": rows}


def killed_and_resumed(place: Place, name: str, settings: list[str]) -> dict[str, Any]:
    whole, cut = place.folder / f"whole_{name}", place.folder / f"cut_{name}"
    undisturbed = command(*place.settings(whole.name, *settings))
    killed = command(*place.settings(cut.name, *settings))
    while killed.poll() is None and not any(path.stat().st_size for path in cut.rglob("rounds.jsonl")):
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    ended(undisturbed)
    n_left = len(records(cut))
    if killed.returncode >= 0:
        raise RuntimeError(f"{name} ended with exit code {killed.returncode} before it was killed")
    ended(command(*place.settings(cut.name, *settings)))
    both = [[without_costs(record) for record in records(folder)] for folder in (whole, cut)]
    return {
        "what": name, "rounds": len(both[0]), "rounds_before_kill": n_left, "equal": both[0] == both[1],
        "accuracy": both[0][-1]["metrics"]["accuracy"],
    }  # fmt: skip


def without_costs(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("seconds", "peak_memory", "fit_from")}


def memory(place: Place) -> dict[str, Any]:
    """The runs are those of `resume`. On a GPU only what lies there counts."""
    rows = []
    for name, settings in arms(place).items():
        parts = plan.make(bench_spine.settings(*place.settings(f"whole_{name}", *settings))).memory
        parts = {k: round(n / 1e6) for k, n in parts.items() if place.device.type == "cpu" or k not in NOT_ON_GPU}
        peak = max(record["peak_memory"] for record in records(place.folder / f"whole_{name}")) / 1e6
        rows.append({"what": name, "peak_MB": round(peak), "estimate_MB": sum(parts.values()), "parts_MB": parts})
    return {"passed": all(row["peak_MB"] <= PEAK * row["estimate_MB"] for row in rows), "rows": rows}


# Short runs in this process, on digits


def strategies(place: Place) -> dict[str, Any]:
    """All choose after the same fit."""
    settings = ("budget.initial=20", f"trainer.max_steps={place.sizes.query_steps}", "strategy=typiclust")
    c = bench_spine.settings(*place.settings("strategies", *settings))
    store = RunStore(c)
    seconds, failed = {}, {}
    with store.at_work():
        learner, _, pool, _, _ = loop.begin(c, store, load(c.strategy))  # typiclust's fixed features are for all
        net = learner.build(0)
        learner.fit(net, pool, 0)
        for name in whole_strategies():
            start = time.perf_counter()
            try:
                chosen = loop.acquire(load(NO_PASSES | shipped("strategy", name)), learner, net, pool, QUERY, 0).idx_K
                if len(chosen.unique()) != QUERY:
                    failed[name] = f"{len(chosen.unique())} images, not {QUERY}"
            except (Exception, SystemExit) as error:
                failed[name] = f"{type(error).__name__}: {error}"
            seconds[name] = round(time.perf_counter() - start, 2)
    return {"passed": not failed, "failed": failed, "seconds": seconds}


def precision(place: Place) -> dict[str, Any]:
    fit = ("budget.rounds=0", "budget.initial=1000", f"trainer.max_steps={5 * place.sizes.steps}")

    def accuracy(precision: str, seed: int) -> float:
        own = (f"trainer.precision={precision}", f"seed={seed}")
        store = RunStore(bench_spine.settings(*place.settings(f"precision_{precision}", *own, *fit)))
        with store.at_work():
            loop.run(store.config, store)
        return store.records()[-1].metrics["accuracy"]

    names = ("32-true", *mixed_precisions(place.device))
    found = {name: round(mean(accuracy(name, seed) for seed in range(place.sizes.seeds)), 4) for name in names}
    far = [name for name, a in found.items() if abs(a - found["32-true"]) > place.sizes.accuracy]
    return {"passed": not far, "too_far": far, "accuracy": found}


def mixed_precisions(device: torch.device) -> Iterator[str]:
    """Those that the device has. On a CPU Lightning replaces 16-mixed by bf16-mixed."""
    if device.type == "cpu" or torch.cuda.is_bf16_supported():
        yield "bf16-mixed"
    if device.type != "cpu":
        yield "16-mixed"


# All of them

# The first two come before this process is large: a process that it starts has its peak of memory as the first value.
CHECKS: tuple[Callable[[Place], dict[str, Any]], ...] = (resume, memory, throughput, strategies, precision)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def attempt(check: Callable[[Place], dict[str, Any]], place: Place) -> dict[str, Any]:
    """What a check found. One that breaks has failed, and the others go on."""
    start = time.perf_counter()
    try:
        found = check(place)
    except (Exception, SystemExit) as error:
        found = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    return found | {"took_seconds": round(time.perf_counter() - start, 1)}


def find_device(asked: str) -> torch.device:
    """Exits if a GPU is asked for and there is none."""
    if asked != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", 0)
    why = "none is visible" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
    if asked == "cuda":
        sys.exit(f"gpu_check: no GPU to check: {why}.")
    if asked == "auto":
        print(f"No GPU is checked: {why}. These are the checks on the CPU, with small sizes.")
    return torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--quick", action="store_true", help="small sizes on a GPU too, without limits on the speed")
    parser.add_argument("--out", type=Path, help=f"default: {OUT}, with a GPU; a CPU's findings are kept only here")
    args = parser.parse_args()

    process.prepare()
    device = find_device(args.device)
    sizes = SMALL if args.quick or device.type == "cpu" else FULL
    out = args.out or (OUT if device.type == "cuda" else None)
    found: dict[str, Any] = {
        "device": name_of(device), "cuda": torch.version.cuda if device.type == "cuda" else None,
        "machine": machine(), "sizes": asdict(sizes),
        "checks": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for check in CHECKS:
            one = found["checks"][check.__name__] = attempt(check, Place(device, sizes, Path(folder)))
            print(f"{'pass' if one['passed'] else 'FAIL'}  {check.__name__}, {one['took_seconds']} s", flush=True)
            print(*shown(one), sep="\n", flush=True)
            if out:  # keep what is found if a later check ends the process
                out.write_text(json.dumps(found, indent=1) + "\n")
    failed = [name for name, one in found["checks"].items() if not one["passed"]]
    if failed:
        sys.exit(f"gpu_check: failed on {found['device']}: {', '.join(failed)}.")
    print(f"All checks passed on {found['device']}.")


def shown(check: dict[str, Any]) -> Iterator[str]:
    """The numbers of a check, one line for each row or key."""
    for row in check.get("rows", ()):
        numbers = (f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "what")
        yield f"      {row['what']}: {', '.join(numbers)}"
    for key, value in check.items():
        if key not in ("passed", "rows", "seconds", "took_seconds"):
            yield f"      {key}: {value}"


if __name__ == "__main__":
    main()
