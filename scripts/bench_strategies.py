"""Measure the time of selection: each strategy and the fastest installable peer, on the same input, in turn.

    pip install scikit-activeml batchbald_redux
    python scripts/bench_strategies.py --out results/bench_strategies.json          with peers, then 50,000 images
    python scripts/bench_strategies.py --only large --out ...                       1,280,000 images, 1,000 classes

Only selection is timed; predictions and embeddings are given. The pool is 10,000 images of a Gaussian mixture, D=512,
C=10, with 1,000 labelled and 100 to choose (BatchBALD: 10, from 20 passes). Ours runs `--repeats` times, in turn with
the peer; a slow peer runs only once. Each case runs in a process of its own and reports its memory beyond its input.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from al_bench.options import conf_dir, whole_strategies
from al_bench.provenance import machine
from al_bench.strategies import PoolView, Strategy, load
from al_bench.strategies.guard import select

D, C, LABELLED, PASSES = 512, 10, 1000, 20
# The ratio of times that is wanted.
PEERS = {"badge": 50, "coreset": 4, "typiclust": 5, "prob_cover": 10, "max_herding": 10, "batchbald": 15}
# The seconds for 50,000 images that are wanted.
LIMITS = {"margin": 60, "badge": 60, "coreset": 60, "typiclust": 60, "uncertainty_herding": 120}
LARGE = ["margin", "entropy", "coreset", "badge"]


def settings(name: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [f"strategy={name}"]).strategy)


def strategy_of(name: str) -> Strategy:
    return load(settings(name))


def mixture(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings, logits and labels: first of LABELLED labelled images, then of n pool images."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(C, D)).astype(np.float32)
    labels = rng.integers(C, size=n + LABELLED)
    emb = centres[labels] + rng.normal(size=(n + LABELLED, D)).astype(np.float32)
    return emb, emb @ centres.T / 60 + rng.normal(size=(n + LABELLED, C)).astype(np.float32), labels


def view_for(strategy: Strategy, emb: Tensor, log_probs_NSC: Tensor, labels: Tensor) -> PoolView:
    needs, unit = strategy.needs, torch.nn.functional.normalize
    given: dict = {"labelled_labels_L": labels[:LABELLED], "log_probs_PSC": log_probs_NSC[LABELLED:]}
    if needs.embeddings:
        given |= {"emb_PD": emb[LABELLED:], "labelled_emb_LD": emb[:LABELLED]}
    if needs.embeddings or needs.labelled:
        given["labelled_log_probs_LC"] = log_probs_NSC[:LABELLED, 0]
    if needs.features:
        given |= {"features_PF": unit(emb[LABELLED:]), "labelled_features_LF": unit(emb[:LABELLED])}
    if needs.head:
        given |= {"head_weight_CD": torch.randn(C, emb.shape[1]) / 20, "head_bias_C": torch.zeros(C)}
    return PoolView(len(emb) - LABELLED, log_probs_NSC.shape[2], **given)


def passes_of(logits: np.ndarray) -> Tensor:
    noise = torch.randn(len(logits), PASSES, C, generator=torch.Generator().manual_seed(0))
    return (torch.from_numpy(logits)[:, None] + 0.7 * noise).log_softmax(-1)


class Memory:
    """Measure the peak of this process's anonymous memory, in bytes above the start. Mapped files do not count."""

    def __enter__(self) -> "Memory":
        self.start, self.most, self.on = self.now(), 0, True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while self.on:
            self.most = max(self.most, self.now() - self.start)
            time.sleep(0.005)

    def __exit__(self, *_) -> None:
        self.on = False
        self.thread.join()

    @staticmethod
    def now() -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(text.split("RssAnon:")[1].split()[0])


def ours(name: str, view: PoolView, k: int) -> float:
    strategy, start = strategy_of(name), time.perf_counter()
    select(strategy, view, k, torch.Generator().manual_seed(0), 0)
    return time.perf_counter() - start


def peer(name: str, emb: np.ndarray, logits: np.ndarray, labels: np.ndarray, k: int) -> tuple[str, Callable]:
    """Return the name of the peer and a function that runs it on the same input."""
    if name == "batchbald":
        from batchbald_redux.batchbald import get_batchbald_batch

        log_probs = passes_of(logits)[LABELLED:]
        return "batchbald_redux", lambda: get_batchbald_batch(log_probs, k, 10_000, dtype=torch.double)
    import skactiveml.pool as pool
    from skactiveml.base import SkactivemlClassifier

    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    y = np.where(np.arange(len(emb)) < LABELLED, labels, np.nan)

    class Given(SkactivemlClassifier):
        def fit(self, X, y, sample_weight=None):
            self.classes_ = np.arange(C)
            return self

        def predict_proba(self, X, return_embeddings=False):
            return (probs[-len(X) :], X) if return_embeddings else probs[-len(X) :]

    given = Given(classes=list(range(C))).fit(None, None)
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    calls = {
        "badge": lambda: pool.Badge(clf_embedding_flag_name="return_embeddings", random_state=0).query(
            emb, y, given, fit_clf=False, batch_size=k
        ),
        "coreset": lambda: pool.CoreSet(random_state=0).query(emb, y, batch_size=k),
        "typiclust": lambda: pool.TypiClust(random_state=0).query(unit, y, batch_size=k),
        "prob_cover": lambda: pool.ProbCover(random_state=0, n_classes=C).query(unit, y, batch_size=k),
        "max_herding": lambda: pool.MaxHerding(random_state=0).query(unit, y, batch_size=k),
    }
    return "scikit-activeml", calls[name]


def against_peer(name: str, repeats: int) -> dict:
    emb, logits, labels = mixture(10_000)
    k = 10 if name == "batchbald" else 100
    log_probs = passes_of(logits) if name == "batchbald" else torch.from_numpy(logits).log_softmax(-1)[:, None]
    view = view_for(strategy_of(name), torch.from_numpy(emb), log_probs, torch.from_numpy(labels))
    found: dict = {"strategy": name, "k": k, "ours": [], "peer": []}
    ours(name, view, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found["rival"], rival = peer(name, emb, logits, labels, k)
        for _ in range(repeats):
            found["ours"].append(ours(name, view, k))
            if sum(found["peer"]) < 10:  # slow peers run once or twice
                start = time.perf_counter()
                rival()
                found["peer"].append(time.perf_counter() - start)
    return found | {"ratio": median(found["peer"]) / median(found["ours"])}


def alone(name: str, repeats: int) -> dict:
    """Time a strategy on 10,000 images, without a peer."""
    emb, logits, labels = mixture(10_000)
    strategy = strategy_of(name)
    several = settings(name)["passes"] or settings(name)["members"]
    log_probs = passes_of(logits) if several else torch.from_numpy(logits).log_softmax(-1)[:, None]
    view = view_for(strategy, torch.from_numpy(emb), log_probs, torch.from_numpy(labels))
    ours(name, view, 100)
    return {"strategy": name, "k": 100, "ours": [ours(name, view, 100) for _ in range(repeats)]}


def at_50_000(name: str) -> dict:
    emb, logits, labels = mixture(50_000)
    log_probs = torch.from_numpy(logits).log_softmax(-1)[:, None]
    view = view_for(strategy_of(name), torch.from_numpy(emb), log_probs, torch.from_numpy(labels))
    with Memory() as memory:
        seconds = ours(name, view, 1000)
    return {"strategy": name, "k": 1000, "seconds": seconds, "memory": memory.most}


def at_1_280_000(name: str, folder: Path) -> dict:
    """Time a strategy on float16 predictions and embeddings that are memory-mapped and kept in `folder`."""
    n, d, c = 1_280_000, 768, 1000
    log_probs = mapped(folder / "log_probs.f16", (n, 1, c), lambda x: x.mul_(3).log_softmax(-1))
    emb = mapped(folder / "emb.f16", (n, d), lambda x: x)
    labels = torch.arange(LABELLED) % c
    embeds = strategy_of(name).needs.embeddings
    given = {"emb_PD": emb[LABELLED:], "labelled_emb_LD": emb[:LABELLED]} if embeds else {}
    labelled = {"labelled_log_probs_LC": log_probs[:LABELLED, 0]} if embeds else {}
    view = PoolView(n - LABELLED, c, log_probs[LABELLED:], labelled_labels_L=labels, **given, **labelled)
    with Memory() as memory:
        seconds = ours(name, view, 100)
    return {"strategy": name, "k": 100, "seconds": seconds, "memory": memory.most, "embeddings": emb.nbytes}


def mapped(path: Path, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Tensor:
    if not path.exists():
        stream = torch.Generator().manual_seed(0)
        out = np.memmap(path.with_suffix(".part"), np.float16, "w+", shape=shape)
        for start in range(0, shape[0], 20_000):
            size = (min(20_000, shape[0] - start), *shape[1:])
            out[start : start + size[0]] = change(torch.randn(size, generator=stream)).half().numpy()
        out.flush()
        path.with_suffix(".part").rename(path)
    return torch.from_numpy(np.memmap(path, np.float16, "c", shape=shape))


def run_case(case: str, name: str, repeats: int, folder: str) -> dict:
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, "--case", case, name, "--repeats", str(repeats), "--folder", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    if done.returncode:
        raise SystemExit(f"{case} {name} failed: see above.")
    return json.loads(done.stdout.splitlines()[-1])


def show(found: dict) -> None:
    console = Console()
    if "peers" in found:
        table = Table("strategy", "seconds", "peer", "its seconds", "times faster", "wanted")
        for row in found["peers"]:
            numbers = f"{median(row['ours']):.3f}", row["rival"], f"{median(row['peer']):.2f}"
            table.add_row(row["strategy"], *numbers, f"{row['ratio']:.1f}", str(PEERS[row["strategy"]]))
        console.print("10,000 images", table)
    if "alone" in found:
        times = (f"{row['strategy']} {median(row['ours']):.3f} s" for row in found["alone"])
        console.print("10,000 images: " + ", ".join(times))
    for key, title in (("50,000", "50,000 x 512, 1,000 to choose"), ("1,280,000", "1,280,000 x 768, C=1000, float16")):
        if key in found:
            table = Table("strategy", "seconds", "memory beyond the input", title=title)
            for row in found[key]:
                table.add_row(row["strategy"], f"{row['seconds']:.1f}", f"{row['memory'] / 1e9:.2f} GB")
            console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file; results of other parts in it are kept")
    parser.add_argument("--only", choices=["peers", "alone", "50,000", "large"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="holds the 4.5 GB of the large case; default: a temporary folder")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        case, name = args.case
        cases = {"peers": lambda: against_peer(name, args.repeats), "alone": lambda: alone(name, args.repeats)}
        cases |= {"50,000": lambda: at_50_000(name), "1,280,000": lambda: at_1_280_000(name, Path(args.folder))}
        print(json.dumps(cases[case]()))
        return
    names = whole_strategies()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        found = json.loads(args.out.read_text()) if args.out and args.out.exists() else {"machine": {}}
        parts = {"peers": list(PEERS), "alone": names, "50,000": list(LIMITS), "1,280,000": LARGE}
        for part, strategies in parts.items():
            wanted = {"large": "1,280,000"}.get(args.only, args.only)
            if wanted == part or (wanted is None and part != "1,280,000"):
                found[part], found["machine"][part] = [], machine()
                for name in strategies:
                    found[part].append(run_case(part, name, args.repeats, folder))
                    if args.out:  # keep the results if the next case fails
                        args.out.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
