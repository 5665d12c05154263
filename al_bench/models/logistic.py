"""A linear head at the optimum of its penalised cross-entropy, and samples of its weights around that optimum.

The objective is convex with one optimum, so the head depends on the labelled images alone: not on first weights, the
order of batches or a learning rate.
L labelled, S samples, C classes, D embedding width, E = D + 1 with the bias, B images in a batch.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from al_bench import process, rng, signals
from al_bench.config import Config, Head
from al_bench.data import Dataset
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.models.classifier import Classifier
from al_bench.models.learner import Learner
from al_bench.models.nets import LinearHead

log = logging.getLogger("al_bench")

MAX_ITERATIONS = 500  # a fit needs 15 to 50; only a penalty near 0 on separable images needs more
GRADIENT = 1e-5  # the fit ends where no entry of the gradient is larger
RESIDUAL = 1e-4  # the relative residual at which a sample of the weights is accurate enough
FOLDS = 5  # of the labelled images, for predictions that are held out
CHUNK = 2**24  # numbers in one array of the samples' computation


def relative_penalty(n_labelled: int) -> float:
    """The penalty relative to the mean squared norm of the labelled embeddings.

    Measured on validation images of CIFAR-10 and of cats and dogs, on EfficientNet-Lite0: up to 1,000 labels any value
    from 3e-5 to 5e-4 is equally accurate, and beyond 2,500 the best one falls with the number of labels.
    """
    return min(1e-4, 0.4 / n_labelled)


def penalty_of(x_LE: Tensor, relative: float | None) -> float:
    """The weight of |W|^2 / 2 beside the mean cross-entropy, above 0."""
    norm = float(x_LE.square().sum(1).mean())
    return (relative_penalty(len(x_LE)) if relative is None else relative) * norm


def with_ones(x_BD: Tensor) -> Tensor:
    """[B, E]: the last weight of a class is then its bias, and it is penalised as the others.

    A bias without a penalty would learn from few labels by how much the class counts differ by chance. This one weighs
    as much as one of the D columns. It matters where D is small or a class is rare.
    """
    return torch.cat([x_BD, x_BD.new_ones(len(x_BD), 1)], 1)


def minimise(
    x_LE: Tensor, labels_L: Tensor, n_classes: int, penalty: float, start_CE: Tensor | None = None
) -> tuple[Tensor, int]:
    """(weight_CE, iterations) that minimise the mean cross-entropy of x @ W.T plus penalty / 2 * |W|^2.

    L-BFGS (Liu & Nocedal, 1989) from start_CE or 0, float64. The products with x_LE, most of the work, have its
    precision: those of float32 are exact enough for this gradient.
    """
    weight_CE = x_LE.new_zeros(n_classes, x_LE.shape[1], dtype=torch.float64)
    if start_CE is not None:
        weight_CE += start_CE
    target_LC = F.one_hot(labels_L, n_classes).double()
    optimizer = torch.optim.LBFGS(
        [weight_CE], max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS, history_size=20, tolerance_grad=GRADIENT,
        tolerance_change=1e-12, line_search_fn="strong_wolfe",
    )  # fmt: skip

    @torch.no_grad()
    def objective() -> Tensor:
        signals.stop_if_asked()
        log_probs_LC = (x_LE @ weight_CE.T.to(x_LE)).double().log_softmax(1)
        pull_CE = (log_probs_LC.exp() - target_LC).T.to(x_LE) @ x_LE
        weight_CE.grad = pull_CE.double() / len(x_LE) + penalty * weight_CE
        return -(log_probs_LC * target_LC).sum() / len(x_LE) + penalty / 2 * weight_CE.square().sum()

    optimizer.step(objective)
    objective()
    if (left := float(weight_CE.grad.abs().max())) > 10 * GRADIENT:
        log.warning(f"The logistic head is not at its optimum: gradient {left:.1e}. Raise model.penalty.")
    return weight_CE, optimizer.state[weight_CE]["n_iter"]


def fit_head(n_classes: int, relative: float | None, emb_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(weight_CD, bias_C), float32, of the head at its optimum for these images. relative: model.penalty."""
    x_NE = with_ones(emb_ND.float())
    weight_CE, _ = minimise(x_NE, labels_N, n_classes, penalty_of(x_NE, relative))
    return weight_CE[:, :-1].float(), weight_CE[:, -1].float()


def sample(weight_CE: Tensor, x_LE: Tensor, precision: float, n: int, stream: torch.Generator) -> Tensor:
    """weights_SCE: n draws from the Gaussian N(W, H^-1), the Laplace approximation of the posterior of W.

    H = sum_i (diag(p_i) - p_i p_i^T) (x) x_i x_i^T + precision * I is the whole Hessian at W, never built: each draw
    solves H d = sqrt(precision) * xi_0 + J^T xi_1, whose right-hand side has the covariance H (Papandreou & Yuille,
    2010), by conjugate gradients. All is float64. precision: L times the penalty of `minimise`. stream: on the CPU.
    """
    probs_LC = (x_LE @ weight_CE.T).softmax(1)
    root_LC = probs_LC.sqrt()

    def hessian(v_SCE: Tensor) -> Tensor:
        z_LSC = (x_LE @ v_SCE.flatten(0, 1).T).unflatten(1, v_SCE.shape[:2])
        p_L1C = probs_LC[:, None]
        z_LSC = p_L1C * (z_LSC - (p_L1C * z_LSC).sum(2, keepdim=True))
        return (z_LSC.flatten(1).T @ x_LE).view_as(v_SCE) + precision * v_SCE

    def right_hand_side() -> Tensor:
        noise_CE, noise_LC = (torch.randn(t.shape, generator=stream, dtype=t.dtype).to(t) for t in (weight_CE, root_LC))
        # (diag(s) - p s^T) is a root of diag(p) - p p^T, for s the square root of p.
        spread_LC = root_LC * noise_LC - probs_LC * (root_LC * noise_LC).sum(1, keepdim=True)
        return precision**0.5 * noise_CE + spread_LC.T @ x_LE

    at_once = max(1, CHUNK // max(probs_LC.numel(), weight_CE.numel()))
    parts = [range(n)[i : i + at_once] for i in range(0, n, at_once)]
    draws = [solve(hessian, torch.stack([right_hand_side() for _ in part])) for part in parts]
    return weight_CE + torch.cat(draws)


def solve(times: Callable[[Tensor], Tensor], b_SCE: Tensor) -> Tensor:
    """d_SCE with times(d) = b, by conjugate gradients, for a symmetric positive definite `times`. Each S by itself."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2), keepdim=True)

    d, residual = torch.zeros_like(b_SCE), b_SCE.clone()
    direction, squared = residual.clone(), dot(residual, residual)
    enough, tiny = RESIDUAL**2 * squared, torch.finfo(b_SCE.dtype).tiny
    for _ in range(b_SCE[0].numel()):  # exact arithmetic needs no more
        if (squared <= enough).all():
            break
        signals.stop_if_asked()
        image = times(direction)
        step = squared / dot(direction, image).clamp_min(tiny)
        d.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        before, squared = squared, dot(residual, residual)
        direction.mul_(squared / before.clamp_min(tiny)).add_(residual)
    return d


def weight_of(net: Classifier) -> Tensor:
    """weight_CE of the last layer, its bias last."""
    head = net.net.get_classifier()
    return torch.cat([head.weight, head.bias[:, None]], 1).detach()


class LaplacePasses:
    """One pass for each sample of the head's weights, the same samples for all images."""

    def __init__(self, net: nn.Module, weights_SCE: Tensor) -> None:
        self.net, self.weights_SCE = net, weights_SCE

    def __call__(self, images: Tensor) -> Tensor:
        """logits_BSC, float32."""
        emb_BD = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        return (with_ones(emb_BD) @ self.weights_SCE.flatten(0, 1).T).unflatten(1, self.weights_SCE.shape[:2])


@dataclass(frozen=True, eq=False)
class LogisticLearner(Learner):
    """The learner of model.head=logistic, on frozen features. It needs no Trainer: features come in large batches."""

    ADVICE_ON_NAN = "Their features hold NaN or infinite values: try trainer.precision=32-true, or other images."

    def __post_init__(self) -> None:
        """Raises UserError where the features of a training image are not finite."""
        train_D = self.dataset.mean + self.dataset.std  # not finite if one of the images is not
        if n_bad := int((~torch.as_tensor(train_D).isfinite()).sum()):
            raise UserError(
                f"model.head=logistic: {n_bad:,} of {len(train_D):,} features are NaN or infinite for one training "
                "image or more. Compute them with trainer.precision=32-true, or leave out such images."
            )

    def build(self, round: int, member: int = 0) -> Classifier:
        """A classifier with weights and biases of 0."""
        mean_D, std_D = self.dataset.mean, self.dataset.std
        # A constant column's mean and deviation are rounding errors: it counts as 0 instead of as huge numbers.
        std_D = torch.where(std_D > 1e-6 * (1 + mean_D.abs()), std_D, torch.inf)
        net = LinearHead(replace(self.dataset, std=std_D))
        for parameter in net.get_classifier().parameters():
            nn.init.zeros_(parameter)
        return Classifier(net, self.model.optimizer, self.trainer.schedule)

    def fit(self, net: Classifier, pool: Pool, round: int, member: int = 0) -> tuple[int, int]:
        """Set the weights to the optimum. Returns (1, iterations); the history's one entry is of the optimum."""
        process.return_freed_memory()
        x_LE, labels_L = self._embeddings(net, pool.labelled_L), pool.labels_L.to(self._solver)
        net.penalty, net.labelled_L = penalty_of(x_LE, self.model.penalty), pool.labelled_L  # for `passes`
        weight_CE, iterations = minimise(x_LE, labels_L, self.dataset.n_classes, net.penalty)
        head = net.net.get_classifier()
        head.weight.data.copy_(weight_CE[:, :-1])
        head.bias.data.copy_(weight_CE[:, -1])
        logits_LC = (x_LE @ weight_CE.T.to(x_LE)).double()
        loss, hits = F.cross_entropy(logits_LC, labels_L), logits_LC.argmax(1) == labels_L
        net.history.append({"loss": float(loss), "accuracy": float(hits.double().mean())})
        return len(net.history), iterations

    def passes(self, classifier: Classifier, n: int, purpose: str, round: int) -> LaplacePasses:
        """n passes, each with weights drawn around the optimum, from the random stream of this purpose."""
        x_LE = self._embeddings(classifier, classifier.labelled_L).double()
        weight_CE = weight_of(classifier).to(x_LE)
        stream = rng.stream(self.seed, purpose, round)
        weights_SCE = sample(weight_CE, x_LE, len(x_LE) * classifier.penalty, n, stream)
        return LaplacePasses(classifier.net, weights_SCE.to(self.device, torch.float32))

    def held_out(self, net: Classifier, pool: Pool, round: int) -> Tensor | None:
        """log_probs_LC of each labelled image, float32 on the CPU, by a head that was fit to the other folds.

        The labelled images are dealt to FOLDS folds at random. None with fewer than two of them. Each fit starts from
        the optimum of all: the end does not depend on the start.
        """
        n = len(pool.labelled_L)
        if n < 2:
            return None
        x_LE, labels_L = self._embeddings(net, pool.labelled_L), pool.labels_L.to(self._solver)
        start_CE = weight_of(net).to(x_LE)
        fold_L = torch.randperm(n, generator=rng.stream(self.seed, "held out", round)).to(self._solver) % FOLDS
        logits_LC = x_LE.new_zeros(n, self.dataset.n_classes)
        for fold in range(min(FOLDS, n)):
            rest_L = fold_L != fold
            penalty = penalty_of(x_LE[rest_L], self.model.penalty)
            weight_CE, _ = minimise(x_LE[rest_L], labels_L[rest_L], self.dataset.n_classes, penalty, start_CE)
            logits_LC[~rest_L] = x_LE[~rest_L] @ weight_CE.T.to(x_LE)
        return logits_LC.log_softmax(1).cpu()

    @property
    def _solver(self) -> torch.device:
        """Where float64 is computed: on the learner's device if it can."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def _embeddings(self, net: Classifier, idx_L: Tensor) -> Tensor:
        """[L, E], float32: with a column of ones."""
        with torch.no_grad():
            x_LE = with_ones(torch.cat([net.net.forward_features(images) for images in self._batches(net, idx_L)]))
        return x_LE.to(self._solver)

    def _fill_buffer(self, net: Classifier, idx_P: Tensor) -> None:
        with torch.inference_mode():
            for i, images in enumerate(self._batches(net, idx_P)):
                net.predict_step(images, i)

    def _batches(self, net: Classifier, idx: Tensor) -> Iterator[Tensor]:
        """The features of these images in their order, on the device, where the net is then in eval mode."""
        net.to(self.device).eval()
        for rows in idx.split(self.trainer.predict_batch_size):
            yield self.images.index_select(0, rows.to(self.images.device)).to(self.device)


def learner_of(c: Config, dataset: Dataset) -> Learner:
    """The learner that model.head asks for."""
    kind = LogisticLearner if c.model.head is Head.logistic else Learner
    return kind(c.model, c.trainer, dataset, c.seed)
