"""What every strategy picks from one small pool of points in the plane: the figures of al_bench/strategies/README.md.

    python scripts/gallery.py

It takes a minute. Writes results/gallery/: a figure for each file of al_bench/strategies, and the picks.
P pool points, L labelled, S samples of the head's weights, C classes, G points of the grid, E = 2 + 1 with the bias.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from al_bench import rng
from al_bench.analysis import canvas
from al_bench.models import logistic
from al_bench.options import shipped, whole_strategies
from al_bench.strategies import PoolView, Strategy, load
from al_bench.strategies.example import only_declared
from al_bench.strategies.guard import select
from al_bench.strategies.uncertainty import average_prediction, margin_score

OUT = Path(__file__).parents[1] / "results" / "gallery"
SEED, K = 0, 10
# Centre, spread and number of the points of each group, and their class. The fourth holds near copies of one point,
# where the head is unsure. The last holds three points far from all others.
GROUPS = (
    ((-1.1, 0.1), 0.5, 120, 0),
    ((0.9, 0.8), 0.45, 70, 1),
    ((0.7, -1.0), 0.4, 40, 2),
    ((0.0, -0.45), 0.03, 30, 2),
    ((-2.1, -1.9), 0.08, 3, 2),
)
N_LABELLED = (3, 3, 2)  # of each class, at random among the first three groups
N_SAMPLES = 20
RELATIVE_PENALTY = 0.01
REACH = 2.7  # of the axes
COLUMNS = 5
MARKERS = ("o", "s", "^")  # of the classes
FOREIGN = ((0.05, -0.6), (-0.1, -0.5), (0.0, -0.3))  # acquired points of no class, for strategies that look at them


@dataclass(frozen=True)
class Plane:
    """The pool, the labelled points, and the head at its optimum with samples of its weights around it."""

    pool_P2: Tensor
    labelled_L2: Tensor
    labels_L: Tensor
    weight_CE: Tensor
    weights_SCE: Tensor

    def log_probs(self, points_G2: Tensor, sampled: bool) -> Tensor:
        """[G, S, C], S = 1 without samples."""
        weights_SCE = self.weights_SCE if sampled else self.weight_CE[None]
        return torch.einsum("ge,sce->gsc", logistic.with_ones(points_G2.double()), weights_SCE).log_softmax(2)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    plane, picks = make_plane(), {}
    for file, strategies in by_file().items():
        found = {name: pick(strategy, plane) for name, strategy in strategies.items()}
        draw(OUT / f"{file}.png", plane, found, strategies)
        picks |= {name: positions_K.tolist() for name, positions_K in found.items()}
    (OUT / "picks.json").write_text(json.dumps(picks, indent=1) + "\n")


def make_plane() -> Plane:
    stream = rng.stream(SEED, "gallery")
    points = [torch.tensor(at) + spread * torch.randn(n, 2, generator=stream) for at, spread, n, _ in GROUPS]
    points_N2 = torch.cat(points)
    classes_N = torch.cat([torch.full((n,), label) for _, _, n, label in GROUPS])
    drawn, n_spread = [], sum(n for _, _, n, _ in GROUPS[:3])
    for label, n in enumerate(N_LABELLED):
        of_class = (classes_N[:n_spread] == label).nonzero()[:, 0]
        drawn.append(of_class[torch.randperm(len(of_class), generator=stream)[:n]])
    labelled_L = torch.cat(drawn)
    pool_N = torch.ones(len(points_N2), dtype=torch.bool).index_fill(0, labelled_L, False)
    x_LE, labels_L = logistic.with_ones(points_N2[labelled_L].double()), classes_N[labelled_L]
    penalty = logistic.penalty_of(x_LE, RELATIVE_PENALTY)
    weight_CE, _ = logistic.minimise(x_LE, labels_L, len(N_LABELLED), penalty)
    weights_SCE = logistic.sample(weight_CE, x_LE, len(x_LE) * penalty, N_SAMPLES, stream)
    return Plane(points_N2[pool_N], points_N2[labelled_L], labels_L, weight_CE, weights_SCE)


def by_file() -> dict[str, dict[str, Strategy]]:
    """The strategies of each file of al_bench/strategies, by the file's name, without schedules of them."""
    found: dict[str, dict[str, Strategy]] = {}
    for settings in (shipped("strategy", name) for name in whole_strategies()):
        if "schedule" in settings:
            continue
        file = settings["_target_"].split(".")[-2]
        found.setdefault(file, {})[settings["name"]] = load(settings)
    return found


def pick(strategy: Strategy, plane: Plane) -> Tensor:
    """K positions. Nets of a committee are samples of the head's weights here."""
    n_samples = strategy.n_passes or strategy.members
    log_probs_PSC = plane.log_probs(plane.pool_P2, bool(n_samples))[:, :n_samples]
    labelled_log_probs_LSC = plane.log_probs(plane.labelled_L2, bool(n_samples))[:, :n_samples]
    view = PoolView(
        len(plane.pool_P2), len(N_LABELLED), log_probs_PSC.float(), plane.pool_P2, plane.labelled_L2, plane.labels_L,
        average_prediction(labelled_log_probs_LSC).float(), on_sphere(plane.pool_P2), on_sphere(plane.labelled_L2),
        plane.weight_CE[:, :-1].float(), plane.weight_CE[:, -1].float(), foreign_emb_OD=torch.tensor(FOREIGN),
        refit_head=partial(logistic.fit_head, len(N_LABELLED), RELATIVE_PENALTY),
    )  # fmt: skip
    return select(strategy, only_declared(view, strategy.needs), K, rng.stream(SEED, "select", strategy.name), 0)


def on_sphere(points_N2: Tensor) -> Tensor:
    """Fixed features have length 1: the plane is laid upon half of a sphere."""
    return F.normalize(logistic.with_ones(points_N2 / 2))


def draw(path: Path, plane: Plane, picks: Mapping[str, Tensor], strategies: Mapping[str, Strategy]) -> None:
    n_columns = min(COLUMNS, len(picks))
    n_rows = -(-len(picks) // n_columns)
    figure = canvas.new_figure(canvas.PAGE * n_columns / COLUMNS, 1.55 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for ax in axes[len(picks) :]:
        ax.set_axis_off()
    for ax, (name, positions_K) in zip(axes, picks.items(), strict=False):
        draw_one(ax, plane, positions_K, bool(strategies[name].n_passes or strategies[name].members))
        if strategies[name].needs.foreign:
            ax.scatter(*torch.tensor(FOREIGN).T, s=14, marker="x", color="black", linewidths=0.8)
        ax.set_title(name, fontsize=canvas.SMALL)
    figure.savefig(path, dpi=200)


def draw_one(ax: Axes, plane: Plane, positions_K: Tensor, sampled: bool) -> None:
    """Darker: the margin between the two likeliest classes is smaller."""
    line_G = torch.linspace(-REACH, REACH, 80)
    grid_G2 = torch.stack(torch.meshgrid(line_G, line_G, indexing="xy"), 2).flatten(0, 1)
    uncertainty_G = margin_score(plane.log_probs(grid_G2, sampled))
    extent = (-REACH, REACH, -REACH, REACH)
    ax.imshow(uncertainty_G.view(80, 80), origin="lower", extent=extent, cmap="Greys", vmin=0, vmax=2, aspect="auto")
    ax.scatter(*plane.pool_P2.T, s=2, color="#56B4E9", linewidths=0)
    for label, marker in enumerate(MARKERS):
        of_class = plane.labelled_L2[plane.labels_L == label]
        ax.scatter(*of_class.T, s=16, marker=marker, color="white", edgecolors="black", linewidths=0.7)
    for rank, (x, y) in enumerate(plane.pool_P2[positions_K].tolist(), start=1):
        ax.scatter([x], [y], s=22, color="#D55E00", linewidths=0)
        ax.text(x, y, str(rank), fontsize=4, color="white", ha="center", va="center_baseline")
    edge = 1.05 * REACH  # of picks at the edge all is seen
    ax.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[])


if __name__ == "__main__":
    main()
