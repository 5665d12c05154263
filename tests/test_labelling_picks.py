"""Whether the images of a batch are more uncertain than random ones: values by hand, and where a person reads it."""

import pytest
import torch
from conftest import command
from labelling import CLASSES, digits_in, opened, truth

from al_bench.labelling.advice import Picks, advise, beside_random
from al_bench.labelling.answering import Answering
from al_bench.labelling.predicted import Predicted


def predicted(n_certain: int, n_even: int, pool_P=None) -> Predicted:
    """Of images that the net is certain of (a0, a1, ...), and of images between two classes (b0, b1, ...)."""
    paths = [f"a{i}" for i in range(n_certain)] + [f"b{i}" for i in range(n_even)]
    probs_NC = torch.tensor([[1.0, 0.0]] * n_certain + [[0.5, 0.5]] * n_even)
    return Predicted(paths, ("cat", "dog"), probs_NC, torch.arange(len(paths)) if pool_P is None else pool_P)


def picks(net: Predicted, *paths: str) -> Picks | None:
    net.compare(paths)
    return net.picks


def test_a_batch_is_compared_with_random_ones_of_its_size():
    # A random image is even with probability 0.1: of 10, none to 3 are in 95% of the draws, so 0 to 3 * 0.5 / 10.
    assert picks(predicted(90, 10), *(f"b{i}" for i in range(10))) == Picks(10, 0.5, 0.0, 0.15)
    assert picks(predicted(90, 10), "b0", "a0", "a1", "a2") == Picks(4, 0.125, 0.0, 0.25)  # none to 2 of 4
    assert picks(predicted(0, 9), "b0", "b1") == Picks(2, 0.5, 0.5, 0.5)


def test_random_images_come_from_the_pool_alone():
    labelled_too = predicted(50, 50, pool_P=torch.arange(50))
    assert picks(labelled_too, "a0") == Picks(1, 0.0, 0.0, 0.0)
    assert picks(predicted(5, 5, pool_P=torch.arange(0)), "a0") is None


def test_the_first_comparison_counts_and_images_without_a_prediction_do_not():
    net = predicted(90, 10)
    assert picks(net, "broken") is None
    first = picks(net, "b0", "b1", "broken")
    assert (first.n, first.error) == (2, 0.5) and picks(net, "a0") is first


@pytest.mark.parametrize(
    "error, are",
    [
        (0.301, "more uncertain than"), (0.3, "not clearly more uncertain than"),
        (0.1, "not clearly more uncertain than"), (0.099, "less uncertain than"),
    ],
)  # fmt: skip
def test_the_sentence_says_no_more_than_the_draws(error, are):
    said = beside_random(Picks(1200, error, 0.1, 0.3))
    assert said == (
        f"The last 1,200 chosen images are {are} random ones: by its own probabilities the model would be wrong on "
        f"{error:.1%} of them, and on 10.0% to 30.0% of 1,200 random ones."
    )
    assert said in advise([], 2.0, 900, None, Picks(1200, error, 0.1, 0.3)).text
    assert "random" not in advise([], 2.0, 900, None).text


def label(session, n):
    for _ in range(n):
        assert session.wait(60).state == "labelling"
        (item,) = session.next()
        session.answer(item.path, truth(item.path), seconds=0.5)


def test_the_page_tells_it_of_each_batch_that_a_net_has_chosen(tmp_path):
    digits_in(tmp_path / "photos", 200)
    with opened(tmp_path, "strategy=least_confidence") as session:
        page = Answering(session)
        assert "random ones" not in page.state()["advice"]
        label(session, 40 + 20)
        session.wait(60)
        batch = [item.path for item in session.next(99)]
        errors = [1 - session.likely(path)[0][1] for path in batch]
        found = session.predicted.picks
        assert found.n == len(batch) == 10 and found.error == pytest.approx(sum(errors) / 10, abs=6e-4)
        assert found.error > found.high and beside_random(found) in page.state()["advice"]
        # An answer that the run has read is changed in the middle of a batch: the run begins again, the batch stays.
        label(session, 4)
        trained = next(line for line in session.labels.order() if line.role == "train")
        session.answer(trained.path, next(name for name in CLASSES if name != trained.answer), seconds=0.5)
        label(session, 2)
        assert session.predicted.picks is found
        label(session, 4)
        session.wait(60)
        assert session.predicted.picks is not found and session.predicted.picks.n == 10


def test_suggest_tells_it_too(tmp_path):
    digits_in(tmp_path / "photos", 200)
    asked = ("suggest", "photos", "--n", "10")
    with opened(tmp_path, "strategy=least_confidence") as session:
        label(session, 40 + 20 - 1)
        last = session.next()[0].path
    assert "random ones" not in command(tmp_path, *asked).stdout
    (tmp_path / "last.csv").write_text(f"path,label\n{last},{truth(last)}\n")
    assert command(tmp_path, "ingest", "photos", "last.csv").returncode == 0
    done = command(tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    assert "The last 10 chosen images are more uncertain than random ones" in done.stdout
