"""Open-set: the pool holds foreign images, which belong to no class. Their labels cost and teach nothing.

A foreign image is known as such only once it is acquired. `stressor=foreign` makes such pools.
P pool images, L labelled, O acquired and foreign, C classes, D embedding width, N = L + O.
"""

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor

from al_bench import process
from al_bench.strategies import PoolView, by_chunks, needs, top_k
from al_bench.strategies.greedy import rounded
from al_bench.strategies.uncertainty import margin_score

KNOWN_FIRST = 1e3  # added to a score: images predicted to be known come before all others


def class_logits(view: PoolView, labels_N: Tensor) -> Tensor:
    """The pool by a logistic regression on the embeddings of labelled and foreign images.

    labels_N: the classes, those of the labelled images first. Returns a column for each class that occurs, in order.
    """
    x_ND = torch.cat([view.labelled_emb_LD, view.foreign_emb_OD]).double()
    mean_D, std_D = x_ND.mean(0), x_ND.std(0, correction=0)
    std_D = torch.where(std_D > 1e-6 * (1 + mean_D.abs()), std_D, torch.inf)  # a constant column tells nothing
    model = LogisticRegression(tol=1e-9, max_iter=1000)
    with process.one_blas_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a little short of the optimum will do
        model.fit(((x_ND - mean_D) / std_D).numpy(), labels_N.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    logits = by_chunks(lambda x: (x.double() - mean_D) / std_D @ weight.T + bias, view.emb_PD)
    return logits if len(model.classes_) > 2 else torch.cat([-logits / 2, logits / 2], 1)


def known_probability(view: PoolView) -> Tensor:
    """How likely each pool image belongs to a class, by a logistic regression of known against foreign. [P]

    1 everywhere while no foreign image was acquired, for nothing tells them apart.
    """
    n_known, n_foreign = len(view.labelled_emb_LD), len(view.foreign_emb_OD)
    if not n_known or not n_foreign:
        return torch.ones(view.n_pool, dtype=torch.float64)
    is_known_N = torch.cat([torch.ones(n_known), torch.zeros(n_foreign)]).long()
    return rounded(class_logits(view, is_known_N).softmax(1)[:, 1])


@needs(embeddings=True, foreign=True)
def known_margin(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """Margin among the images that are predicted to belong to a class: the simple baseline for open-set pools.

    A logistic regression on the embeddings tells labelled from foreign images. Images that it takes for foreign come
    last, the most likely known ones first.
    """
    known_P = known_probability(view)
    score_P = by_chunks(margin_score, view.log_probs_PSC)
    return top_k(torch.where(known_P >= 0.5, KNOWN_FIRST + score_P, known_P), k, rng)


@needs(embeddings=True, foreign=True)
def lfosa(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """The images that most surely belong to a class (Ning et al., 2022: LfOSA). It asks for purity, not uncertainty.

    A classifier has the foreign images as a class of their own, after C classes. Of the images that it predicts to be
    of a known class, the largest activation of a known class is modelled by two Gaussians, class by class. The score is
    the probability of the Gaussian with the larger mean. Images predicted to be foreign come last.

    Differences from the paper: its detector is a second deep net, trained each round with a temperature of 0.5 in its
    softmax. Here it is a logistic regression on the embeddings of the round's net. It has no temperature, for neither
    the prediction nor the fit of two Gaussians depends on the scale of activations. While no foreign image was acquired
    all images count as known, by the net's own log-probabilities.
    """
    if len(view.foreign_emb_OD) and len(view.labelled_emb_LD):
        foreign_O = torch.full((len(view.foreign_emb_OD),), view.n_classes)
        logits = rounded(class_logits(view, torch.cat([view.labelled_labels_L, foreign_O])))
        activation_P, class_P = logits[:, :-1].max(dim=1)
        is_known_P = activation_P > logits[:, -1]
    else:
        logits = by_chunks(lambda x: x.double().exp().mean(1).log(), view.log_probs_PSC)
        activation_P, class_P = rounded(logits).max(dim=1)
        is_known_P = torch.ones(view.n_pool, dtype=torch.bool)
    score_P = activation_P.sigmoid()  # of those predicted foreign: the nearest to a class first
    for c in class_P[is_known_P].unique().tolist():
        of_class_P = is_known_P & (class_P == c)
        score_P[of_class_P] = KNOWN_FIRST + upper_share(activation_P[of_class_P])
    return top_k(score_P, k, rng)


def upper_share(activation_N: Tensor) -> Tensor:
    """The probability that each value comes from the upper of two Gaussians that are fitted to all. [N]"""
    low, high = float(activation_N.min()), float(activation_N.max())
    if not high > low:
        return torch.ones_like(activation_N)
    mixture = GaussianMixture(  # its own first guess, by k-means, would be drawn: random_state has no effect
        2, means_init=[[low], [high]], weights_init=[0.5, 0.5], precisions_init=[[[4 / (high - low) ** 2]]] * 2,
        tol=1e-6, max_iter=200, random_state=0,
    )  # fmt: skip
    with process.one_blas_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(activation_N.sort().values[:, None].numpy())
    share_N2 = torch.from_numpy(mixture.predict_proba(activation_N[:, None].numpy()))
    return rounded(share_N2[:, mixture.means_[:, 0].argmax()])
