"""Figures are read back from their axes: numbers by hand, and every drawn thing inside the paper."""

import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from al_bench.analysis import canvas, plots, run_plots, stats
from al_bench.analysis.metric import METRICS
from al_bench.analysis.plots import Curve

FEW = ["random", "margin", "entropy", "bald"]
MANY = ["random", *(f"{a} of a committee {b}" for a in ("entropy", "margin") for b in range(18)), "badge"]
LONG = "An exceedingly long name of a strategy that somebody typed with all of its options, " + "WM" * 20
NASTY = ["a$b_{c", "_hidden", "x$y$z", r"\alpha^2", r"\$", LONG]
NAMES = {"none": [], "one": ["margin"], "few": FEW, "many": MANY, "nasty": NASTY}
LABELS = [100, 200, 300]
NAN, INF = math.nan, math.inf


def drawn(draw, *arguments, **options) -> Axes:
    return draw(canvas.new_figure().subplots(), *arguments, **options)


def curve(labels_R, value_SR) -> Curve:
    return Curve(labels_R, *stats.t_interval(value_SR), seen=value_SR)


def curves(names) -> dict:
    return {name: curve(LABELS, [[0.5, 0.6, 0.7], [0.6, 0.7, 0.9]]) for name in names}


def square(names) -> np.ndarray:
    return np.linspace(0, 1, len(names) ** 2).reshape(len(names), len(names))


def differences(names) -> dict:
    return {name: ([0.01, 0.02, 0.03], [0.0, 0.01, 0.02], [0.02, 0.03, 0.04]) for name in names}


def targets(names) -> dict:
    ends = [(300, 180), (300, INF), (INF, 200), (INF, INF), (NAN, 100), (250, 260)]
    return {name: ends[i % len(ends)] for i, name in enumerate(names)}


BY_NAME = {
    "learning curves": lambda ax, n: plots.learning_curves(ax, curves(n), full=0.95),
    "over labels": lambda ax, n: plots.learning_curves(ax, curves(n), metric=METRICS["ece"]),
    "difference": lambda ax, n: plots.difference_to_random(ax, LABELS, differences(n), ([-0.01] * 3, [0.01] * 3)),
    "target": lambda ax, n: plots.labels_to_target(ax, targets(n), 0.9, most=1000),
    "penalty": lambda ax, n: plots.penalty_matrix(ax, n, square(n)),
    "overlap": lambda ax, n: plots.overlap(ax, n, square(n)),
    "ranks": lambda ax, n: plots.rank_diagram(ax, n, np.arange(len(n)) + 1.5, square(n) > 0.4),
    "cost": lambda ax, n: plots.cost(ax, {name: (10 + i, 0.9) for i, name in enumerate(n)}),
    "balance": lambda ax, n: plots.class_balance(ax, n, np.ones((len(n), 3)), ["cat", "_$x$", LONG], [1, 1, 2]),
    "classes": lambda ax, n: plots.class_balance(ax, n, np.ones((len(n), 100)), list(map(str, range(100)))),
}

# many names are slow to measure, and these kinds put them where another does
CASES = [(k, n) for k in BY_NAME for n in NAMES if n != "many" or k not in ("over labels", "difference", "overlap")]


def assert_inside(figure: Figure) -> None:
    """Everything that is drawn, texts first, lies on the paper; the axes have not collapsed."""
    figure.draw_without_rendering()
    box, width, height = figure.get_tightbbox(), *figure.get_size_inches()
    assert -0.01 <= box.x0 and box.x1 <= width + 0.01 and -0.01 <= box.y0 and box.y1 <= height + 0.01
    for ax in figure.axes:
        size = ax.get_window_extent().size / figure.dpi
        assert size[0] > 0.9 and size[1] > 0.2


def words(figure: Figure) -> str:
    """All texts in the order they were made, line breaks and the escapes of dollars undone."""
    return " ".join(t.get_text() for t in figure.findobj(Text) if t.get_text()).replace("\n", " ").replace(r"\$", "$")


@pytest.mark.parametrize("kind, names", CASES)
def test_nothing_leaves_the_paper_and_every_name_is_there(kind, names):
    draw, names = BY_NAME[kind], NAMES[names]
    ax = drawn(draw, names)
    assert_inside(ax.figure)
    assert ax.get_xlabel() or ax.get_ylabel()
    seen = words(ax.figure).replace(" ", "")
    assert kind == "overlap" and len(names) == 1 or all(name.replace(" ", "") in seen for name in names)


@pytest.mark.parametrize("draw", [BY_NAME[kind] for kind in ("target", "penalty", "balance", "ranks")])
def test_names_beside_rows_do_not_run_into_each_other(draw):
    ax = drawn(draw, [f"{LONG} {i}" for i in range(5)])
    ax.figure.draw_without_rendering()
    beside = [t for t in (*ax.get_yticklabels(), *ax.texts) if LONG[:10] in t.get_text()]
    boxes = [t.get_window_extent() for t in beside]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("name", [n for n in NASTY if n != LONG])
@pytest.mark.parametrize("draw", [BY_NAME[kind] for kind in ("learning curves", "penalty", "ranks")])
def test_a_name_is_drawn_as_it_is_written(draw, name):
    figure = drawn(draw, [name, "margin"]).figure
    escaped = name.replace("$", r"\$")
    text = next(t for t in figure.findobj(Text) if t.get_text() in (escaped, f"{escaped}  1.50"))
    written = text.get_text().replace(escaped, name)
    literal = figure.text(0, 0, written, fontsize=text.get_fontsize(), rotation=text.get_rotation(), parse_math=False)
    assert text.get_window_extent().size == pytest.approx(literal.get_window_extent().size)


def test_a_formula_in_a_name_would_be_noticed():
    figure = canvas.new_figure()
    formula, literal = figure.text(0, 0, "x$y$z"), figure.text(0, 0, "x$y$z", parse_math=False)
    assert formula.get_window_extent().width != pytest.approx(literal.get_window_extent().width)


def test_many_strategies_all_look_different_also_without_colour():
    looks = canvas.style(MANY)
    assert len(looks) == len({(look["marker"], look["linestyle"]) for look in looks.values()}) == 38
    apart = canvas.style(MANY[:25]).values()
    assert len(apart) == len({(look["color"], look["linestyle"]) for look in apart}) == 25
    assert looks["random"] == canvas.style(["margin"])["random"] == {"color": "black", "marker": "o", "linestyle": "-"}
    assert canvas.style([*MANY[1:], "random"]) == looks
    assert len(canvas.style(map(str, range(500)))) == 501


def test_colours_are_seen_on_white_paper():
    def luminance(colour: str) -> float:  # WCAG 2
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    assert all(1.05 / (luminance(colour) + 0.05) > 2 for colour in canvas.COLOURS)


def test_a_curve_is_the_mean_and_its_band_the_t_interval():
    # two rounds, three seeds: mean 0.6 and 0.8; standard error 0.1 / sqrt(3), t of 2 degrees of freedom 4.302653
    ax = drawn(plots.learning_curves, {"margin": curve([100, 300], [[0.5, 0.8], [0.6, 0.8], [0.7, 0.8]])}, full=0.957)
    line, full = ax.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[100, 60], [300, 80]])
    np.testing.assert_allclose(full.get_ydata(), 95.7)
    band = ax.collections[0].get_paths()[0].vertices
    at_100 = band[band[:, 0] == 100, 1]
    np.testing.assert_allclose([at_100.min(), at_100.max()], [60 - 24.841378, 60 + 24.841378])
    np.testing.assert_allclose(band[band[:, 0] == 300, 1], 80)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Training labels", "Test accuracy (%)")
    assert words(ax.figure).endswith("margin full data (95.7%)")


def test_the_full_data_is_not_drawn_on_the_frame():
    # Curves from 50 to 80: their frame alone would end at 81.5.
    ax = drawn(plots.learning_curves, {"margin": curve([100, 300], [[0.5, 0.8], [0.5, 0.8]])}, full=0.814)
    low, high = ax.get_ylim()
    assert high - 81.4 == pytest.approx(0.05 * (81.4 - 50)) and low == pytest.approx(50 - 0.05 * (81.4 - 50))


def test_the_band_of_two_seeds_does_not_flatten_the_curve():
    # Two seeds, 10 points apart: 12.7 * 5 points to either side. The values span 50 to 80, and the full data is at 95.
    ax = drawn(plots.learning_curves, {"margin": curve([100, 300], [[0.5, 0.7], [0.6, 0.8]])}, full=0.95)
    assert ax.get_ylim() == pytest.approx((50 - 45 / 4, 95 + 45 / 4))
    ax = drawn(plots.difference_to_random, [100, 300], {"margin": ([0.01, 0.02], [-0.5, -0.6], [0.5, 0.6])})
    assert ax.get_ylim() == pytest.approx((-10, 12))
    ax = drawn(plots.difference_to_random, [100, 300], {"margin": ([0.1, -0.1], [-0.5, -0.6], [0.5, 0.6])})
    assert ax.get_ylim() == pytest.approx((-30, 30))


def test_one_seed_has_a_curve_and_no_band():
    ax = drawn(plots.learning_curves, {"margin": curve(LABELS, [[0.5, 0.6, 0.7]])})
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [50, 60, 70])
    assert not any(len(path.vertices) for path in ax.collections[0].get_paths())


def test_other_metrics_keep_their_scale():
    ax = drawn(plots.learning_curves, curves(["a"]), full=0.5, metric=METRICS["nll"])
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[0], 0.55)
    assert ax.get_ylabel() == "Test NLL (nats)" and words(ax.figure).endswith("full data (0.5 nats)")
    ax = drawn(plots.learning_curves, curves(["a"]), metric=METRICS["worst_class"])
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[0], 55)
    assert ax.get_ylabel() == "Worst class's recall (%)"
    ax = drawn(plots.difference_to_random, LABELS, differences(["a"]), metric=METRICS["nll"])
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [0.01, 0.02, 0.03])
    assert ax.get_ylabel() == "NLL minus random's\n(nats)"
    ax = drawn(plots.labels_to_target, {"a": (5, 7)}, 0.5, metric=METRICS["ece"])
    assert ax.get_xlabel() == "Labels to a test ECE of 0.5"
    ax = drawn(plots.cost, {"a": (10.0, 0.9)}, metric=METRICS["brier"])
    assert ax.get_lines()[0].get_ydata() == 0.9 and ax.get_ylabel() == "Test Brier score at the end"


def test_curves_keep_the_look_they_are_given():
    looks = canvas.style(FEW)
    for draw, given in (
        (plots.learning_curves, [curves(["bald"])]),
        (plots.difference_to_random, [LABELS, differences(["bald"])]),
    ):
        line = drawn(draw, *given, styles=looks).get_lines()[0]
        assert (line.get_color(), line.get_marker(), line.get_linestyle()) == tuple(looks["bald"].values())


@pytest.mark.parametrize(
    "bad", [[[0.5, NAN, 0.7], [0.6, 0.7, 0.8]], [[INF, 0.6, 0.7], [-INF, 0.7, 0.8]], [[NAN] * 3] * 2, np.empty((0, 3))]
)
def test_what_is_not_a_number_is_a_gap(bad):
    ax = drawn(plots.learning_curves, {"random": curve(LABELS, bad)}, full=NAN)
    assert_inside(ax.figure)
    good_R = np.isfinite(bad).all(0) & (len(bad) > 0)
    np.testing.assert_array_equal(np.isfinite(ax.get_lines()[0].get_ydata()), good_R)
    assert len(ax.get_lines()) == 1


def test_differences_are_percentage_points_around_zero():
    ax = drawn(plots.difference_to_random, LABELS, differences(["margin"]), ([-0.01] * 3, [0.02] * 3))
    curve, zero = ax.get_lines()
    np.testing.assert_allclose(curve.get_ydata(), [1, 2, 3])
    np.testing.assert_allclose(zero.get_ydata(), 0)
    own, noise = (c.get_paths()[0].vertices[:, 1] for c in ax.collections)
    assert (own.min(), own.max(), noise.min(), noise.max()) == pytest.approx((0, 4, -1, 2))
    assert "percentage points" in ax.get_ylabel() and "random against random" in words(ax.figure)


def test_labels_to_a_target_end_at_their_numbers_or_in_an_arrow():
    rows = {"margin": (300, 180), "bald": (300, INF), "badge": (INF, 200), "coreset": (INF, INF), "x": (NAN, 100)}
    ax = drawn(plots.labels_to_target, rows, 0.9, most=1000)
    marks = {}
    for line in ax.get_lines():
        if line.get_marker() != "None":
            x, y = line.get_xydata()[0]
            marks.setdefault(int(y), []).append(
                (round(float(x)), line.get_marker(), line.get_markerfacecolor() == "white")
            )
    edge = marks[1][1][0]
    own = {name: look["marker"] for name, look in canvas.style(rows).items()}
    assert edge > 1000
    assert marks == {
        0: [(300, "o", True), (180, own["margin"], False)],
        1: [(300, "o", True), (edge, ">", False)],
        2: [(edge, ">", True), (200, own["badge"], False)],
        3: [(edge, ">", True), (edge, ">", False)],
        4: [(100, own["x"], False)],
    }
    assert [t.get_text() for t in ax.texts] == ["> 1,000", "> 1,000", "both > 1,000"]
    assert ax.get_xlabel() == "Labels to 90.0% test accuracy"
    assert [t.get_text() for t in drawn(plots.labels_to_target, {"a": (5, INF)}, 0.9).texts] == ["> max"]


def cells(ax: Axes) -> dict:
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}


def test_penalties_stand_where_the_row_beats_the_column():
    ax = drawn(plots.penalty_matrix, ["a", "b"], [[0, 0.25], [0.5, 0]])
    assert cells(ax) == {(0, 1): ".25", (1, 0): ".50", (2, 0): ".25", (2, 1): ".12"}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "column mean"]
    assert "row beats" in ax.get_ylabel() and "the column" in ax.get_xlabel()
    assert cells(drawn(plots.penalty_matrix, ["a", "b"], [[0, 12], [1, 0]]))[0, 1] == "12"


def test_overlap_is_the_lower_triangle():
    ax = drawn(plots.overlap, ["a", "b", "c"], [[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    assert cells(ax) == {(0, 0): ".10", (1, 0): ".20", (1, 1): ".30"}
    assert [t.get_text() for t in (*ax.get_yticklabels(), *ax.get_xticklabels())] == ["b", "c", "a", "b"]
    assert list(drawn(plots.overlap, ["a", "b"], np.full((2, 2), NAN)).texts) == []


def test_ranks_are_joined_by_the_largest_groups_that_do_not_differ():
    # a, b, c are alike, c and d are, and a and d differ: two bars; e stands alone; b and d touch no common bar
    same = np.eye(5, dtype=bool)
    for i, j in ((0, 1), (0, 2), (1, 2), (2, 3)):
        same[i, j] = same[j, i] = True
    ax = drawn(plots.rank_diagram, list("abcde"), [1.0, 2.0, 2.5, 4.0, 5.0], same)
    bars = [line for line in ax.get_lines() if line.get_linewidth() == 2]
    assert [list(bar.get_xdata()) for bar in bars] == [[1.0, 2.0, 2.5], [2.5, 4.0]]
    assert len({bar.get_ydata()[0] for bar in bars}) == 2  # they would touch at 2.5
    assert sorted(t.get_text() for t in ax.texts) == ["a  1.00", "b  2.00", "c  2.50", "d  4.00", "e  5.00"]
    assert "1 is the best" in ax.get_xlabel()


def test_an_elbow_leads_from_each_rank_to_its_name():
    names, ranks = list("abcde"), [5.0, 1.0, 3.0, 2.0, 4.0]
    ax = drawn(plots.rank_diagram, names, ranks, np.eye(5))
    elbows = {float(line.get_xdata()[0]): line.get_xydata()[-1] for line in ax.get_lines()}
    for text in ax.texts:
        name, rank = text.get_text().split()
        assert ranks[names.index(name)] == float(rank)
        np.testing.assert_allclose(elbows[float(rank)], text.xy)
    assert len({tuple(end) for end in elbows.values()}) == 5
    assert [t.get_text() for t in drawn(plots.rank_diagram, ["a", "b"], [NAN, 1], np.eye(2)).texts] == ["b  1.00"]


SECONDS = "Training, predicting and selecting, all rounds\n(seconds, log scale)"


def test_cost_is_on_a_log_axis_that_says_which_seconds():
    ax = drawn(plots.cost, {"a": (10.0, 0.9), "b": (1000.0, 0.95), "no time": (0.0, 0.5), "lost": (5.0, NAN)})
    assert [tuple(line.get_xydata()[0]) for line in ax.get_lines()] == [(10, 90), (1000, 95)]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == SECONDS


def test_the_seconds_have_ticks_however_close_they_are():
    ax = drawn(plots.cost, {"a": (31.0, 0.9), "b": (33.0, 0.95)})
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == pytest.approx([20, 50])


def test_class_shares_add_up():
    ax = drawn(plots.class_balance, ["a", "b"], [[1, 3], [0, 0]], ["cat", "dog"])
    bars = [
        (round(b.get_y() + b.get_height() / 2), b.get_x(), b.get_width())
        for b in ax.patches
        if isinstance(b, Rectangle)
    ]
    assert bars == [(0, 0, 25), (0, 25, 75), (1, 0, 0), (1, 0, 0)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]


def test_many_classes_are_curves_of_falling_shares():
    counts = np.arange(20)[None] + 0.5  # 200 in all
    ax = drawn(plots.class_balance, ["a"], counts, [""] * 20)
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_ydata(), (np.arange(20)[::-1] + 0.5) / 2)


HISTORY = [{"loss": 2.0, "accuracy": 0.5, "val_loss": 2.5, "val_accuracy": 0.4}, {"loss": 1.0, "accuracy": 0.8}]


def test_histories_of_one_fit():
    ax = drawn(run_plots.training_history, HISTORY)
    training, validation = ax.get_lines()
    np.testing.assert_allclose(training.get_xydata(), [[1, 50], [2, 80]])
    np.testing.assert_allclose(validation.get_ydata(), [40, NAN])
    ax = drawn(run_plots.training_history, [{"loss": 2.0}], "loss")
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[2.0]] and "nats" in ax.get_ylabel()


def test_panels_beside_each_other_keep_their_legends_inside():
    figure = canvas.new_figure(canvas.PAGE)
    for ax, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        run_plots.training_history(ax, HISTORY, quantity)
    assert_inside(figure)
    assert not figure.legends and all(ax.get_legend() for ax in figure.axes)
    assert tuple(figure.get_size_inches()) == (canvas.PAGE, canvas.HEIGHT)


def test_a_marker_stands_where_each_retraining_starts():
    histories = [[{"val_accuracy": a} for a in accuracies] for accuracies in ([0.1, 0.2, 0.3], [], [0.4], [0.5, 0.6])]
    curve, starts = drawn(run_plots.validation_history, histories).get_lines()
    np.testing.assert_allclose(curve.get_xydata(), [[i + 1, 10 * (i + 1)] for i in range(6)])
    np.testing.assert_allclose(starts.get_xydata(), [[4, 40], [5, 50]])


def test_sizes_and_accuracy_of_each_retraining():
    labelled, pool = drawn(run_plots.pool_sizes, [10, 20], [90, 80]).get_lines()
    np.testing.assert_allclose(labelled.get_xydata(), [[0, 10], [1, 20]])
    np.testing.assert_allclose(pool.get_ydata(), [90, 80])
    accuracy, full = drawn(run_plots.after_retraining, [0.5, 0.6], full=0.7).get_lines()
    np.testing.assert_allclose(accuracy.get_xydata(), [[0, 50], [1, 60]])
    np.testing.assert_allclose(full.get_ydata(), 70)


@pytest.mark.parametrize(
    "draw, arguments",
    [
        (run_plots.training_history, ([],)),
        (run_plots.pool_sizes, ([], [])),
        (run_plots.after_retraining, ([],)),
        (run_plots.after_retraining, ([NAN], INF)),
        (run_plots.validation_history, ([],)),
        (run_plots.validation_history, ([[], []],)),
        (run_plots.validation_history, ([[{"loss": 1.0}], [{"loss": 1.0}]],)),
        (plots.learning_curves, ({"a": curve([20], [[0.5]])},)),
        (plots.learning_curves, ({"a": Curve([20], [0.5])},)),
        (plots.difference_to_random, ([], {"a": ([], [], [])})),
        (plots.difference_to_random, ([20], {"a": ([INF], [-INF], [NAN])})),
        (plots.labels_to_target, ({"a": (INF, INF)}, 0.9)),
        (plots.class_balance, ([], np.empty((0, 0)), [])),
        (plots.penalty_matrix, (["a", "b"], np.full((2, 2), NAN))),
    ],
)
def test_little_or_nothing_to_show_is_labelled_axes(draw, arguments):
    ax = drawn(draw, *arguments)
    assert_inside(ax.figure)
    assert ax.get_xlabel()


def test_pyplot_is_never_imported():
    script = (
        "import sys; from al_bench.analysis import canvas, plots; ax = canvas.new_figure().subplots()\n"
        "plots.rank_diagram(ax, ['a', 'b'], [1, 2], [[1, 1], [1, 1]]); ax.figure.draw_without_rendering()\n"
        "print(*sorted({'matplotlib.pyplot', 'torch', 'pandas', 'scipy.stats'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
