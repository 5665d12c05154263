"""The article as its code runs it, flaws included, and its question with the random baseline that it lacks.

    python scripts/gentle_introduction.py --dogs-vs-cats train.zip [--seeds 7]

Runs three full-data references and the article's loop once. Then random, margin and BADGE, with fresh weights and equal
steps at six label counts, and the full data with the same steps. It takes some twenty hours of one core. Then random,
entropy and BADGE with enough steps for the article's accuracy on the full data. These take some seven hours. The same
command goes on after a stop. Writes results/gentle_introduction/.
"""

import argparse
from math import isfinite
from statistics import fmean

import check_results
import frozen_features
import published

from al_bench.analysis import report, results, stats, verdict
from al_bench.analysis.compare import CONTROL, RANDOM, Comparison
from al_bench.analysis.metric import ACCURACY
from al_bench.analysis.results import Run
from al_bench.analysis.tables import last_round
from al_bench.config import StopAt, StopConfig
from al_bench.stopping import is_reached

OUT = published.ROOT / "results" / "gentle_introduction"
RUNS = OUT / "runs"
FAITHFUL, FAIR, TRAINED = "gentle_introduction", "gentle_introduction_fair", "gentle_introduction_trained"
ARMS = ("random", "entropy", "badge")  # of the net trained longest; with two classes margin is entropy
FIRST = ARMS[:2]  # they run first, and a look needs them alone
LOOKS = (3, 5, 7)  # how many seeds of it are published, planned before the first run
FULL = 3  # trainings on the full data, as in the article's part
STEPS = (1000, 2500, 3000)  # of the full data and a seed that is not compared: how many reach the article's accuracy
LOOP = {
    "full_accuracy": "Training on the full data, accuracy",
    "full_loss": "Training on the full data, loss",
    "pool-0-entropy": "Training set and pool",
    "retraining-0-entropy": "Test accuracy after each training",
    "validation-0-entropy": "Validation accuracy",
}
QUESTION = "Does choosing save labels for the article's net, trained until its full data has the article's accuracy?"
CURVES = {"learning_curves": "Learning curves", "difference_to_random": "Difference to random"}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--dogs-vs-cats", required=True, help="from the project's folder")
    ask.add_argument("--seeds", type=int, default=7, help="no call can be made below 6")
    a = ask.parse_args()
    root, seeds = f"dataset.root={a.dogs_vs_cats}", f"seed=range({a.seeds})"
    published.sweep(f"experiment={FAITHFUL}", root, "budget=full", "seed=0,1,2", runs=RUNS)
    write_faithful()
    published.sweep(f"experiment={FAIR}", root, seeds, "strategy=random,margin,badge", runs=RUNS)
    published.sweep(f"experiment={FAIR}", root, seeds, "budget=full", runs=RUNS)
    write_fair(a.seeds)
    published.sweep(f"experiment={FAITHFUL}", root, "seed=0", runs=RUNS)
    write_faithful()
    for n in STEPS:
        length = f"study={of_steps(n)}", f"trainer.max_steps={n}"
        published.sweep(f"experiment={TRAINED}", root, "budget=full", "seed=100", *length, runs=RUNS)
    planned = f"seed=range({LOOKS[-1]})"  # the seeds are the outer loop
    published.sweep(f"experiment={TRAINED}", root, planned, f"strategy={','.join(FIRST)}", runs=RUNS)
    published.sweep(f"experiment={TRAINED}", root, f"seed=range({FULL})", "budget=full", runs=RUNS)
    published.sweep(f"experiment={TRAINED}", root, planned, f"strategy={','.join(ARMS)}", runs=RUNS)
    write_trained()


def of_steps(n: int) -> str:
    """The study of the full data after n steps."""
    return f"gentle_introduction_steps_{n}"


def write_faithful() -> None:
    """Write the article's part of the page: the full data and, once it is finished, the loop."""
    runs = published.finished(RUNS / FAITHFUL)
    looped = any(run.setting.budget != "full" for run in runs)
    c = published.keep(runs, OUT / "as_published", LOOP if looped else {})
    published.fill(
        OUT / "README.md",
        checks=check_results.as_list("gentle_introduction/as_published"),
        loop=f"{as_markdown('as_published', LOOP)}\n\n{how_it_ended(c)}" if looped else "The loop is not finished yet.",
        costs=published.costs([c]),
    )


def how_it_ended(c: Comparison) -> str:
    """How the loop ended, in Markdown. Its reference is the full data with the same seed."""
    (loop,) = c.runs["entropy"]
    rounds = published.rounds(loop)
    (full,) = (published.rounds(run)[-1] for run in c.references if run.seed == loop.seed)
    start, end, all_labels = (
        f"{r['metrics']['accuracy']:.2%} with {r['n_labelled']:,} labels" for r in (rounds[0], rounds[-1], full)
    )
    thrown_away = sum(r["weights_from"] != r["round"] for r in rounds)
    target, tolerance = full["metrics"]["accuracy"], loop.config["budget.stop.tolerance"]
    nearest = min(rounds, key=lambda r: abs(r["metrics"]["accuracy"] - target))
    return (
        f"From {start} to {end}, where {loop.info['stopped']}; the full data with the same seed (the first two "
        f"figures): {all_labels}. Nearest to that come {nearest['metrics']['accuracy']:.2%} with "
        f"{nearest['n_labelled']:,} labels. The stop rule, at most {100 * tolerance:g} points between the two, is "
        f"{when_to_stop(loop, target)}; were the full data a point lower, {when_to_stop(loop, target - 0.01)}; "
        f"a point higher, {when_to_stop(loop, target + 0.01)}.\n\n"
        f"The weights of {thrown_away} of {len(rounds) - 1} retrainings were thrown away, for an earlier round's "
        "validation loss was lower: those rounds repeat the accuracy before them. The last weights were fitted with "
        f"{rounds[rounds[-1]['weights_from']]['n_labelled']:,} labels.\n\n"
        f"The full data, each seed on test images of its own: {', '.join(map(of_reference, c.references))}; the loop "
        f"is in {precision(loop)}."
    )


def when_to_stop(loop: Run, target: float) -> str:
    """When the loop's own rule would have stopped it at this target, whatever reference it had at the time."""
    tolerance, two_sided = (loop.config[f"budget.stop.{key}"] for key in ("tolerance", "two_sided"))
    stop = StopConfig(StopAt.test, tolerance, two_sided)
    met = loop.labels_R[[is_reached(accuracy, target, stop) for accuracy in loop.metrics["accuracy"]]]
    return f"first met with {met[0]:,} labels" if len(met) else "never met"


def of_reference(run: Run) -> str:
    return f"seed {run.seed} {run.metrics['accuracy'][-1]:.2%} (in {precision(run)})"


def precision(run: Run) -> str:
    return run.info["starts"][-1]["precision"]


def write_fair(n_seeds: int) -> None:
    """Write the part of the page with fresh weights, equal steps and random sampling."""
    write_compared([run for run in published.finished(RUNS / FAIR) if run.seed < n_seeds], "fair", "verdict")


def write_trained() -> None:
    """Write the answer, and the part with the net trained longest: the seeds of the last planned look."""
    runs = published.finished(RUNS / TRAINED)
    done = {(run.strategy, run.setting.budget == "full", run.seed) for run in runs}

    def has(n: int, strategy: str, full: bool = False) -> bool:
        return done >= {(strategy, full, seed) for seed in range(n)}

    n_seeds = max((n for n in LOOKS if all(has(n, name) for name in FIRST)), default=0)
    if n_seeds and has(FULL, RANDOM, full=True):
        arms = [name for name in ARMS if has(n_seeds, name)]
        looked_at = [run for run in runs if run.seed < n_seeds and run.strategy in arms]
        c = write_compared(looked_at, "trained", "trained")
        published.fill(OUT / "README.md", answer=answer(c), steps=how_long(), on_frozen_features=on_frozen_features())
    else:
        published.fill(
            OUT / "README.md", answer=f"{QUESTION} Not answered yet: no planned number of seeds is finished."
        )


def on_frozen_features() -> str:
    """The same question on the same images for a linear layer on a pretrained net's features, in Markdown."""
    rounds, summaries = frozen_features.kept("dogs_vs_cats")
    labels_R, curve = check_results.curves(rounds["low"], [RANDOM])
    trained = check_results.read("gentle_introduction/trained")
    full = trained[trained["budget"] == "full"]["accuracy"].mean()
    names = (RANDOM, CONTROL, *ARMS[1:], "uncertainty_herding")
    return (
        f"With {labels_R[0]} labels the linear layer has {curve[RANDOM][:, 0].mean():.1f}% on average; the net above "
        f"has {full:.1f}% with all labels.\n\n{frozen_features.strategy_table(names, rounds, summaries)}"
    )


def how_long() -> str:
    """The test accuracy on the full data by the number of steps, in Markdown."""
    found = {n: run for n in STEPS for run in published.finished(RUNS / of_steps(n))}
    reached = [f"{run.metrics['accuracy'][-1]:.2%} after {n:,} steps" for n, run in found.items()]
    return f"The full data of seed 100, which is not compared: {', '.join(reached)}."


def write_compared(runs: list[Run], folder: str, part: str) -> Comparison:
    """Write results/gentle_introduction/<folder>/ and the part of the page."""
    c = published.keep(runs, OUT / folder, CURVES)
    parts = {
        part: "\n\n".join([as_markdown(folder, CURVES), published.words(c), to_the_full_data(c), learned(c)]),
        f"checks_of_{part}": check_results.as_list(f"gentle_introduction/{folder}"),
        f"costs_of_{part}": published.costs([c]),
    }
    published.fill(OUT / "README.md", **parts)
    return c


def answer(c: Comparison) -> str:
    """Whether choosing saves labels, how many, and how sure that is: a few sentences on each strategy."""
    called = {name: v for name, v in c.versus_random.items() if v.significant}
    better = [name for name, v in called.items() if v.area.mean > 0]
    if better:
        says = f"Yes, by {' and '.join(better)}."
    elif all(v.why_no_call for v in c.versus_random.values()):
        says = "Not answered yet."
    else:
        says = "No gain was found."
    n = len(c.seeds(RANDOM))
    more = f" {LOOKS[-1]} seeds are planned, and {n} are done." if n < LOOKS[-1] else ""
    if waiting := [name for name in ARMS if name not in c.runs]:
        more += f" Planned too and not done: {', '.join(waiting)}."
    return report.md(" ".join([QUESTION, says, *verdict.sentences(c), *by_label_count(c)]) + more)


def by_label_count(c: Comparison) -> list[str]:
    """A sentence for each strategy: its accuracy minus random's at every label count that it chose for."""
    return [
        f"{name} minus random, in points, each interval alone: "
        + ", ".join(
            f"{ACCURACY.difference(mean)}{ACCURACY.bounds(low, high) if isfinite(low) else ''} at {n:,} labels"
            for n, mean, low, high in [*zip(c.labels_R, *c.versus_random[name].difference, strict=True)][1:]
        )
        + "."
        for name in c.best_first
    ]


def as_markdown(folder: str, figures: dict[str, str]) -> str:
    return "\n".join(f"![{title}]({folder}/{name}.png)" for name, title in figures.items())


def to_the_full_data(c: Comparison) -> str:
    """Accuracy at the last label count minus that of training on all labels, paired by seed, in Markdown."""
    full = c.full_by_seed  # of some seeds, or of all
    last, n_train = c.labels_R[-1], c.references[0].labels_R[-1]
    lines = [f"At {last:,} labels, minus the accuracy with all {n_train:,} ({c.full:.1%}):", ""]
    for name in c.runs:
        last_S = dict(zip(c.seeds(name), c.curve(name)[:, -1], strict=True))
        gap = stats.paired_difference([last_S[seed] for seed in full], [*full.values()])
        lines.append(f"- {name}: {ACCURACY.gain(gap.mean)}{ACCURACY.bounds(gap.low, gap.high)}, n = {gap.n} pairs")
    return "\n".join(lines)


def learned(c: Comparison) -> str:
    """Training accuracy over the whole of the last fit: how well nets learned what each strategy acquired."""
    shares = []
    for name, runs in c.runs.items():
        last_fits = [results.histories(run)[last_round(c, run)] for run in runs]
        shares.append(f"{report.md(name)} {fmean(epochs[-1]['accuracy'] for epochs in last_fits):.0%}")
    return (
        f"Accuracy on the batches of the fit at {c.labels_R[-1]:,} labels, over all its steps from the first on, with "
        "dropout, mean over seeds: "
        f"{', '.join(shares)}."
    )


if __name__ == "__main__":
    main()
