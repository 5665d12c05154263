"""Measure the overhead of the framework: images per second of Learner.fit and Learner.predict, and of a bare loop.

    python scripts/bench_spine.py --out results/bench_spine.json
    python scripts/bench_spine.py --zip train.zip --out ...      also times the decoding of cats and dogs
    python scripts/bench_spine.py --only precision --out results/bench_precision.json     float32 against bf16 autocast
    python scripts/bench_spine.py --only masks --out results/bench_masks.json     dropout masks from random bytes

The bare PyTorch loop trains the article's CNN with the same autocast, memory format and batch sizes. Its images are
normalised floats in memory. Ours are 20,000 uint8 images, so our time includes reading and converting them. The two
take turns, so that other work on the machine slows both. The figures are medians over the repeats.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from al_bench import config, process
from al_bench.data import Dataset, sources
from al_bench.data.oracle import Oracle
from al_bench.data.pool import Pool
from al_bench.models import hardware
from al_bench.models.learner import Learner
from al_bench.options import conf_dir

N_IMAGES, SIZE = 20_000, 64
PREDICT_BATCH = 256


def settings(*overrides: str) -> config.Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config.read(compose("config", ["trainer.progress=false", "trainer.accelerator=cpu", *overrides]))


def data(n: int = N_IMAGES, size: int = SIZE) -> tuple[Dataset, Pool]:
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=stream)
    labels = torch.randint(0, 2, (n,), generator=stream)
    everything, nothing = torch.arange(n), torch.empty(0, dtype=torch.int64)
    half = (0.5, 0.5, 0.5)
    dataset = Dataset(
        "noise", images.permute(0, 3, 1, 2), everything, nothing, nothing, ("cat", "dog"), half, half, "noise"
    )
    pool = Pool(nothing, nothing, everything, nothing, nothing)
    return dataset, pool.acquire(everything, Oracle(labels, everything))


def our_fit(c: config.Config, dataset: Dataset, pool: Pool) -> float:
    learner = Learner(c.model, c.trainer, dataset, c.seed)
    net = learner.build(0)
    learner.images  # noqa: B018  a run brings them to the device once
    start = time.perf_counter()
    learner.fit(net, pool, 0)
    return c.trainer.batch_size * c.trainer.max_steps / (time.perf_counter() - start)


def our_predict(c: config.Config, dataset: Dataset, n: int) -> float:
    learner = Learner(c.model, c.trainer, dataset, c.seed)
    net = learner.build(0)
    learner.images  # noqa: B018
    idx = torch.randperm(len(dataset.images))[:n].sort().values  # a pool: ascending, with gaps
    start = time.perf_counter()
    learner.predict(net, idx)
    return n / (time.perf_counter() - start)


def bare_net() -> nn.Module:
    def block(channels: int, width: int, padding: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, width, 3, padding=padding)
        return [conv, nn.ReLU(), nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.Dropout(0.25)]

    convolutions = [*block(3, 32, 1), *block(32, 64, 0), *block(64, 128, 0)]
    dense = [nn.Flatten(), nn.Linear(4608, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Linear(128, 2)]
    return nn.Sequential(*convolutions, *dense).to(memory_format=torch.channels_last)


def bare_fit(net: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int, bf16: bool) -> float:
    """Images per second of a loop on the device that holds net, x and y."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    start = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(0, len(x), (batch_size,), device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(net(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait_for(x.device)
    return batch_size * steps / (time.perf_counter() - start)


def bare_predict(net: nn.Module, x: Tensor, n: int, bf16: bool) -> float:
    net.eval()
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        for i in range(0, n, PREDICT_BATCH):
            net(x[i % len(x) :][: min(PREDICT_BATCH, n - i)])
    wait_for(x.device)
    return n / (time.perf_counter() - start)


def wait_for(device: torch.device) -> None:
    """A GPU works on while Python goes on: wait until it has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_turn(name: str, ours: Callable[[], float], bare: Callable[[], float], repeats: int) -> dict:
    """Medians of images per second, and of their ratio. Each goes first in half of the repeats."""
    ours(), bare()
    pairs = [(ours(), bare()) if i % 2 else (bare(), ours())[::-1] for i in range(repeats)]
    return {
        "what": name, "ours": median(o for o, _ in pairs), "bare": median(b for _, b in pairs),
        "ratio": median(o / b for o, b in pairs), "ratios": sorted(o / b for o, b in pairs),
    }  # fmt: skip


def ratios(repeats: int, seconds: float) -> list[dict]:
    dataset, pool = data()
    x = torch.rand(4096, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    y = torch.randint(0, 2, (4096,))
    base = settings(f"trainer.predict_batch_size={PREDICT_BATCH}")
    bf16 = hardware.precision(base.trainer) == "bf16-mixed"
    contests: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    for batch_size in (16, 128):
        steps = int(seconds * bare_fit(bare_net(), x, y, batch_size, 20, bf16) / batch_size) + 1
        c = settings(f"trainer.batch_size={batch_size}", f"trainer.max_steps={steps}")
        contests[f"train, batches of {batch_size}"] = (
            lambda c=c: our_fit(c, dataset, pool),
            lambda b=batch_size, s=steps: bare_fit(bare_net(), x, y, b, s, bf16),
        )
    batches = int(seconds * bare_predict(bare_net(), x, 2 * PREDICT_BATCH, bf16)) // PREDICT_BATCH
    n = min(N_IMAGES, max(1, batches) * PREDICT_BATCH)
    contests[f"predict, batches of {PREDICT_BATCH}"] = (
        lambda: our_predict(base, dataset, n),
        lambda: bare_predict(bare_net(), x, n, bf16),
    )
    return [in_turn(name, ours, bare, repeats) for name, (ours, bare) in contests.items()]


def precisions(repeats: int, seconds: float) -> list[dict]:
    """bf16 against float32: which of the two trainer.precision=auto should choose on this processor."""
    key, new, old = "trainer.precision", "bf16-mixed", "32-true"
    small, timm = ("model=small_cnn", "trainer.batch_size=32"), ("model=timm", "trainer.batch_size=32")
    resnet = (*timm, "model.name=resnet18", "model.pretrained=false")
    return [
        fits_in_turn("train small_cnn", small, (key, new, old), repeats, seconds),
        fits_in_turn("train resnet18", resnet, (key, new, old), repeats, seconds),
    ]


def masks(repeats: int, seconds: float) -> list[dict]:
    """Dropout masks from random bytes against torch's."""
    key = ("trainer.dropout_masks", "bytes", "null")
    return [
        fits_in_turn(f"train small_cnn, batches of {n}", (f"trainer.batch_size={n}",), key, repeats, seconds)
        for n in (16, 64, 128)
    ]


def fits_in_turn(
    name: str, recipe: tuple[str, ...], values: tuple[str, str, str], repeats: int, seconds: float
) -> dict:
    """Images per second of Learner.fit with both values of a key, measured in turn. values: the key, and the two."""
    dataset, pool = data()
    key, new, old = values

    def fit(value: str, steps: int) -> float:
        return our_fit(settings(*recipe, f"trainer.max_steps={steps}", f"{key}={value}"), dataset, pool)

    steps = int(seconds * fit(old, 3) / settings(*recipe).trainer.batch_size) + 3
    fit(new, 3)
    pairs = [(fit(new, steps), fit(old, steps)) for _ in range(repeats)]
    return {
        "what": name, new: median(n for n, _ in pairs), old: median(o for _, o in pairs),
        "ratio": median(n / o for n, o in pairs), "ratios": sorted(n / o for n, o in pairs),
    }  # fmt: skip


def decode_seconds(archive: str) -> dict:
    with tempfile.TemporaryDirectory() as cache:
        c = settings("dataset=dogs_vs_cats", f"dataset.root={archive}", f"cache_dir={cache}")
        times = []
        for _ in ("decoded", "read back from the cache"):
            start = time.perf_counter()
            pixels = sources.find(c.dataset, None, cache).read().pixels
            times.append(time.perf_counter() - start)
    return {"images": len(pixels), "size": pixels.shape[1], "decode": times[0], "from_cache": times[1]}


def start_seconds(repeats: int) -> dict[str, float]:
    """Return the wall time of whole processes on the digits: one step, no query; a default run; a finished run."""
    tiny = ["budget.initial=10", "budget.validation=0", "budget.rounds=0", "trainer.max_steps=1"]
    times: dict[str, list[float]] = {"one step": [], "default run": [], "already finished": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as results:
            for name, arguments in (("one step", ["study=tiny", *tiny]), ("default run", []), ("already finished", [])):
                own = [f"results_dir={results}", f"cache_dir={results}/cache"]  # it takes no first fit of another run
                command = [sys.executable, "-m", "al_bench", *own, *arguments]
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=conf_dir().parent)
                times[name].append(time.perf_counter() - start)
    return {name: median(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--zip", help="train.zip of cats and dogs, to time its decoding")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="approximate length of one measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 varies less on a busy machine")
    parser.add_argument("--only", choices=["ratios", "start", "precision", "masks"])
    args = parser.parse_args()

    process.prepare()
    torch.set_num_threads(args.threads)
    found: dict = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "threads": args.threads}
    if args.only == "precision":
        able = getattr(torch.cpu, "get_capabilities", dict)()
        found["multiplies bf16"] = sorted(name for name, there in able.items() if "bf16" in name and there is True)
        found["precision"] = precisions(args.repeats, args.seconds)
        print(json.dumps(found, indent=1))
    if args.only == "masks":
        found["masks"] = masks(args.repeats, args.seconds)
        print(json.dumps(found, indent=1))
    if args.only in (None, "ratios"):
        found |= {"repeats": args.repeats, "throughput": ratios(args.repeats, args.seconds)}
        table = Table("images per second", "al_bench", "bare loop", "ratio", "(lowest, highest)")
        for row in found["throughput"]:
            low, high = row["ratios"][0], row["ratios"][-1]
            table.add_row(row["what"], f"{row['ours']:,.0f}", f"{row['bare']:,.0f}", f"{row['ratio']:.2f}",
                          f"({low:.2f}, {high:.2f})")  # fmt: skip
        Console().print(table)
    if args.only in (None, "start"):
        found["start"] = start_seconds(min(args.repeats, 3))
        print("  ".join(f"{name} {seconds:.1f} s" for name, seconds in found["start"].items()))
    if args.zip:
        found["decode"] = decode_seconds(args.zip)
        print("decoding:", json.dumps(found["decode"]))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
