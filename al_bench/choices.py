"""The words that keys of the configuration may have as values."""

from enum import Enum


class OnBadImage(Enum):
    stop = "stop"
    skip = "skip"


class InitialDraw(Enum):
    """What chooses the initial set: chance, chance balanced by class, or a strategy that sees fixed features alone."""

    random = "random"
    balanced = "balanced"
    k_center = "k_center"
    k_means = "k_means"
    typiclust = "typiclust"
    prob_cover = "prob_cover"
    active_ft = "active_ft"
    bilaf = "bilaf"


class Extractor(Enum):
    """Where fixed features come from: pixels through PCA, a timm backbone, or the model of the round."""

    pca = "pca"
    backbone = "backbone"
    model = "model"


class Weights(Enum):
    """Which weights a round's fit starts from."""

    fresh = "fresh"
    previous = "previous"
    best = "best"


class Mode(Enum):
    finetune = "finetune"
    frozen = "frozen"


class Head(Enum):
    """What trains the last layer on frozen features, other than model.optimizer; null is model.optimizer."""

    logistic = "logistic"


class Schedule(Enum):
    """How the learning rate changes during a fit. step: it falls to a tenth after four fifths of the steps."""

    constant = "constant"
    cosine = "cosine"
    step = "step"


class Augment(Enum):
    none = "none"
    flip = "flip"
    flip_crop = "flip_crop"


class Masks(Enum):
    """What dropout masks are drawn from in training, other than by torch; null is torch."""

    bytes = "bytes"


class Annotator(Enum):
    """Who answers for the labels, other than the data themselves; null is the data."""

    person = "person"


class Monitor(Enum):
    loss = "loss"
    accuracy = "accuracy"


class StopAt(Enum):
    validation = "validation"
    test = "test"


class TrackingMode(Enum):
    online = "online"
    offline = "offline"
    disabled = "disabled"
