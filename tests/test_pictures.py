"""The pictures of a finished run."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from al_bench import pictures
from al_bench.data import Dataset
from al_bench.pictures import Row, contact_sheet


def images(*greys, height=4, width=4, channels=1):
    grey_N111 = torch.tensor(greys, dtype=torch.uint8).view(-1, 1, 1, 1)
    return grey_N111.expand(-1, channels, height, width)


def dataset_of(images, labels):
    idx, none = torch.arange(len(images)), torch.empty(0, dtype=torch.int64)
    return Dataset("made up", images, none, idx, torch.tensor(labels), ("cat", "dog"), (0.0,), (1.0,), "")


def words(figure):
    return [text.get_text() for text in figure.texts]


def test_a_contact_sheet_shows_every_image_once_in_order():
    rows = [Row("one_$a$", images(0, 10, 20)), Row("two", images(7, 7, channels=3, height=8), ["its", "word"])]
    figure = contact_sheet(rows, 5)
    first, second = (ax.get_images()[0].get_array() for ax in figure.axes)
    assert first.shape == (4, 3 * 5, 3)  # a white pixel after each
    assert first[0, :, 0].tolist() == [*[0] * 4, 255, *[10] * 4, 255, *[20] * 4, 255]
    assert second.shape == (8, 10, 3) and (second[:, :4] == 7).all()
    assert words(figure) == [r"one_\$a\$", "two", "its", "word"]
    assert [text.get_position()[0] * 25 for text in figure.texts[2:]] == pytest.approx([2, 7])  # below their images
    figure.draw_without_rendering()
    for ax, array in zip(figure.axes, (first, second), strict=True):  # square pixels of one size, inside the page
        box = ax.get_window_extent()
        assert (box.width / array.shape[1], box.height / array.shape[0]) == pytest.approx((figure.bbox.width / 25,) * 2)
        assert box.x0 >= 0 and box.y0 >= 0 and box.y1 <= figure.bbox.height
    for text in figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height


def test_the_most_uncertain_are_the_highest_scores_in_order_with_true_and_predicted_class(tmp_path, monkeypatch):
    certainty = torch.tensor([0.9, 0.6, 0.7, 0.5, *[0.99] * 10])
    log_probs_N1C = torch.stack([certainty, 1 - certainty], 1).log()[:, None]
    kept = {}
    monkeypatch.setattr(pictures, "save", lambda figure, path: kept.update({path: figure}))
    pictures.most_uncertain(tmp_path, dataset_of(images(*range(14)), [0, 1, 0, 0, *[0] * 10]), log_probs_N1C)
    figure = kept[tmp_path]
    for ax in figure.axes:  # one each of least confidence, margin and entropy
        assert ax.get_images()[0].get_array()[0, ::5, 0].tolist() == [3, 1, 2, 0, *range(4, 10)]
    least_confidence = words(figure)[:5]
    assert least_confidence == ["least confidence", "cat\n0.5", "dog, not\ncat\n0.4", "cat\n0.3", "cat\n0.1"]


def test_the_predicted_class_of_several_passes_is_that_of_their_mean_probability(tmp_path, monkeypatch):
    cat_NS = torch.tensor([[0.9999, 0.2, 0.25]] * 10)  # mean 0.483, but the mean logarithm is higher for cat
    kept = {}
    monkeypatch.setattr(pictures, "save", lambda figure, path: kept.update({path: figure}))
    log_probs_NSC = torch.stack([cat_NS, 1 - cat_NS], 2).log()
    pictures.most_uncertain(tmp_path, dataset_of(images(*range(10)), [0] * 10), log_probs_NSC)
    assert words(kept[tmp_path])[1] == "cat, not\ndog\n0.483"


def test_a_run_of_many_rounds_shows_some_of_them_and_one_that_acquired_nothing_an_empty_sheet(tmp_path):
    dataset = dataset_of(torch.zeros(200, 3, 64, 64, dtype=torch.uint8), [0] * 200)
    for n in (200, 0):
        records = [SimpleNamespace(n_labels=10 + r, acquired=[r]) for r in range(n)]
        pictures.picked(tmp_path / f"{n}.jpg", dataset, records)
    with Image.open(tmp_path / "200.jpg") as many, Image.open(tmp_path / "0.jpg") as empty:
        assert 1000 < many.height < 4000 and empty.height < 50


def test_the_curve_of_one_run_is_saved(tmp_path):
    records = [SimpleNamespace(n_labels=n, metrics={"accuracy": a}) for n, a in ((20, 0.5), (40, 0.7))]
    pictures.learning_curve(tmp_path / "curve.png", records, "entropy, seed 0")
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.width > 500
