"""Measure the two heads on frozen features, trained by model.optimizer and model.head=logistic: accuracy and CPU time.

    python scripts/bench_head.py --cifar10 FOLDER --dogs-vs-cats train.zip [--weights NAME=FILE ...]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. Without a network give timm's weights of both
backbones as files. For each seed the labelled images are random ones of the training split, at the ten label counts of
each budget, the same for both heads. Both are fitted in turn, in one process with one thread, with the settings of
experiment=frozen_features. Its default is the head that is nowhere worse by 0.3 points and better on average. The
larger backbone sees a random part of the images. The same command continues after a stop. Writes
results/bench_head.json and a table in results/README.md.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

import check_results
import numpy as np
import published
import torch
from frozen_features import CLASSES, LABELS_A_CLASS
from hydra import compose, initialize_config_dir
from torch import Tensor

from al_bench import config, plan, process, rng
from al_bench.analysis import report, stats
from al_bench.data import Dataset, sources
from al_bench.data.oracle import Oracle
from al_bench.data.pool import Pool
from al_bench.metrics import classification_metrics
from al_bench.models import features
from al_bench.models.learner import Learner
from al_bench.models.logistic import LogisticLearner
from al_bench.options import conf_dir
from al_bench.provenance import machine

OUT = check_results.RESULTS / "bench_head.json"
# The images that a backbone sees, None for all, and the share of cats and dogs that is the test set.
BACKBONES: dict[str, tuple[dict[str, int | None], float]] = {
    "tf_efficientnet_lite0": ({"cifar10": None, "dogs_vs_cats": None}, 0.1),
    "tf_efficientnet_lite2": ({"cifar10": 13_000, "dogs_vs_cats": 5_000}, 0.4),
}
HEADS = {"optimizer": Learner, "logistic": LogisticLearner}


def settings(*overrides: str) -> config.Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config.read(
            compose("config", ["experiment=frozen_features", "model.head=null", "trainer.threads=1", *overrides])
        )


def a_part(dataset: Dataset, oracle: Oracle, n: int | None) -> tuple[Dataset, Tensor]:
    """(the data set with n random images, the label of each training image). n: None for all."""
    kept = torch.arange(len(dataset.images)) if n is None else chosen(len(dataset.images), n)
    train = torch.isin(dataset.train_idx, kept)
    labels = oracle.label(dataset.train_idx[train])
    if n is None:
        return dataset, labels
    test = torch.isin(dataset.test_idx, kept)
    part = replace(
        dataset,
        images=dataset.images.permute(0, 2, 3, 1)[kept].permute(0, 3, 1, 2),
        train_idx=torch.searchsorted(kept, dataset.train_idx[train]),
        test_idx=torch.searchsorted(kept, dataset.test_idx[test]),
        test_labels_V=dataset.test_labels_V[test],
        checksum=f"{dataset.checksum}, {n} of them",
    )
    return part, labels


def chosen(n_all: int, n: int) -> Tensor:
    return torch.randperm(n_all, generator=torch.Generator().manual_seed(0))[:n].sort().values


def measured(c: config.Config, dataset: Dataset, labels: Tensor, budget: str) -> dict:
    """Both heads at each label count of the budget: accuracy and NLL on the test set, CPU seconds of the fit."""
    n = LABELS_A_CLASS[budget] * dataset.n_classes
    order = torch.randperm(len(labels), generator=rng.stream(c.seed, "labelled"))
    counts = plan.label_counts(replace(c, budget=replace(c.budget, initial=n, query=n)), len(labels))
    nothing = order[:0]
    found: dict = {"labels": counts} | {name: {"accuracy": [], "nll": [], "seconds": []} for name in HEADS}
    for i, count in enumerate(counts):
        rows = order[:count]
        pool = Pool(dataset.train_idx[rows], labels[rows], dataset.train_idx[order[count:]], nothing, nothing)
        heads = list(HEADS.items())
        for name, kind in heads if (c.seed + i) % 2 else heads[::-1]:
            learner = kind(c.model, c.trainer, dataset, c.seed)
            learner.device  # noqa: B018 - found once a run, not once a fit
            net, start = learner.build(i), time.process_time()
            learner.fit(net, pool, i)
            seconds = time.process_time() - start
            log_probs_VC = learner.predict(net, dataset.test_idx).log_probs_PSC[:, 0]
            scores = classification_metrics(log_probs_VC, dataset.test_labels_V)
            for key, value in (("accuracy", scores["accuracy"]), ("nll", scores["nll"]), ("seconds", seconds)):
                found[name][key].append(round(value, 5))
    return found


def cases(
    data: dict[str, list[str]], backbones: list[str], weights: dict[str, str], seeds: int, rows: list[dict]
) -> Iterator[dict]:
    """Measure and yield each case that `rows` lacks, one seed of all settings after the other."""
    done = {tuple(row[k] for k in ("data set", "backbone", "budget", "seed")) for row in rows}
    for seed in range(seeds):
        for backbone in backbones:
            images, test_fraction = BACKBONES[backbone]
            for name, overrides in data.items():
                left = [budget for budget in LABELS_A_CLASS if (name, backbone, budget, seed) not in done]
                if not left:
                    continue
                file = [f"model.weights={weights[backbone]}"] if backbone in weights else []
                split = [f"dataset.test_fraction={test_fraction}"] if name == "dogs_vs_cats" else []
                c = settings(*overrides, *split, *file, f"model.name={backbone}", f"seed={seed}")
                source = sources.find(c.dataset, None, c.cache_dir)
                part, labels = a_part(*sources.load(c.dataset, source, seed), images[name])
                dataset = features.freeze(c, part)
                for budget in left:
                    case = {"data set": name, "backbone": backbone, "budget": budget, "seed": seed}
                    yield case | {"n_test": len(part.test_idx)} | measured(c, dataset, labels, budget)


def place(setting: tuple[str, str, str]) -> tuple[str, str, int]:
    """Sorts the table: the budgets of a data set and backbone in their order."""
    return *setting[:2], list(LABELS_A_CLASS).index(setting[2])


def table(rows: list[dict]) -> str:
    """Each setting's row and what they say together, in Markdown."""
    heads = [
        "data set, backbone", "budget", "seeds", "model.optimizer", "logistic: points more", "the worst label count",
        "NLL", "CPU seconds of the fits",
    ]  # fmt: skip
    lines, gains, worst = [], [], []
    for setting in sorted({(r["data set"], r["backbone"], r["budget"]) for r in rows}, key=place):
        ours = [r for r in rows if (r["data set"], r["backbone"], r["budget"]) == setting]
        old, new = (100 * np.array([r[head]["accuracy"] for r in ours]) for head in HEADS)
        d = stats.paired_difference(new.mean(1), old.mean(1))
        interval = "" if d.low is None else f" [{d.low:+.2f}, {d.high:+.2f}]"
        gains.append(d.mean)
        worst.append((new - old).mean(0).min())
        nll, seconds = ([mean(mean(r[head][key]) for r in ours) for head in HEADS] for key in ("nll", "seconds"))
        n_fits, labels = len(ours[0]["labels"]), ours[0]["labels"]
        lines.append([
            report.md(f"{setting[0]}, {setting[1]}"), f"{setting[2]}: {labels[0]:,} to {labels[-1]:,}", str(len(ours)),
            f"{old.mean():.1f}%", f"{d.mean:+.2f}{interval}", f"{worst[-1]:+.2f}",
            f"{nll[0]:.2f}, {nll[1]:.2f}", f"{n_fits * seconds[0]:.1f}, {n_fits * seconds[1]:.1f}",
        ])  # fmt: skip
    return (
        f"{report.markdown_rows(heads, lines)}\n\nAccuracy and NLL on the test set: means over ten label counts and "
        "the seeds. Differences are paired by seed, with 95% intervals. The worst label count: the lowest of the ten "
        f"mean differences. On average over the settings {mean(gains):+.2f} points; at the worst label count of all "
        f"{min(worst):+.2f}."
    )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="where there is no network")
    ask.add_argument("--seeds", type=int, default=10)
    ask.add_argument("--backbones", nargs="*", default=list(BACKBONES), choices=BACKBONES)
    a = ask.parse_args()
    process.prepare()
    data = {
        "cifar10": ["dataset=image_folder", "dataset.name=cifar10_images", f"dataset.root={a.cifar10.resolve()}",
                    "dataset.image_size=128"],
        "dogs_vs_cats": ["dataset=dogs_vs_cats", f"dataset.root={a.dogs_vs_cats.resolve()}", "dataset.image_size=224"],
    }  # fmt: skip
    assert data.keys() <= CLASSES.keys()
    found = json.loads(OUT.read_text()) if OUT.exists() else {"machine": machine(), "rows": []}
    torch.set_num_threads(1)
    weights = dict(pair.split("=", 1) for pair in a.weights)
    for case in cases(data, a.backbones, weights, a.seeds, found["rows"]):
        found["rows"].append(case)
        OUT.write_text(json.dumps(found) + "\n")  # all that is measured, if the next case fails
    published.fill(check_results.RESULTS / "README.md", bench_head=table(found["rows"]))


if __name__ == "__main__":
    main()
