"""A sweep: compose every job, leave out finished runs, launch the others, say how each ended.

Nothing here imports torch, so a finished sweep returns at once.
"""

import functools
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper as SweeperPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from al_bench import config, signals
from al_bench.analysis import planned
from al_bench.analysis.results import INTERRUPTED, RUNNING, in_words, is_current, note_requested, state_of
from al_bench.errors import UserError
from al_bench.finished import is_finished
from al_bench.provenance import now
from al_bench.recipe import differing_keys, separating_override
from al_bench.store import RunStore

Job = list[str]  # the overrides of one run, as they would be typed


class Sweeper(SweeperPlugin):
    """Hydra's grid of jobs. Only the jobs whose run is not finished are launched.

    A job's composed configuration identifies its run, and the run's folder says whether it is finished. So the same
    command continues a sweep that ended early, under every launcher. Raises SystemExit if a run is missing at the end.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, Any] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.parser = OverridesParser.create(hydra_context.config_loader)
        if config.hydra.runtime.choices["hydra/launcher"] == "ray" and not find_spec(
            "hydra_plugins.hydra_ray_launcher"
        ):
            raise UserError("hydra/launcher=ray needs a package that is not installed: pip install hydra-ray-launcher")
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        HydraConfig.instance().set_config(self.config)  # for ${hydra:...} in a value
        requested = [f"{key}={values}" for key, values in self.params.items()] + arguments
        overrides = self.parser.parse_overrides(requested)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        if not jobs:
            raise UserError(message_of_empty_sweep(overrides))
        configs = list(self.composed(jobs))  # all of them first: a misspelt key stops the sweep before any run
        finished, todo, refused = sort_out(jobs, configs)
        studies = {folder.parents[4] for folder in finished | todo.keys()}
        for study in studies:
            try:
                note_requested(study, [folder for folder in finished | todo.keys() if folder.parents[4] == study])
            except Exception as error:
                print(f"al_bench: {describe(error)} The report cannot name runs that never begin.", file=sys.stderr)
        note_planned(finished | todo.keys())
        if todo:
            print(f"Sweep: {len(todo)} to run, {len(finished)} there already.", flush=True)
            try:
                ours = [job for job, _ in todo.values()]
                if self.runs_here():
                    of_job = dict(zip(map(tuple, jobs), configs, strict=True))
                    self.run_here([of_job[tuple(job)] for job in ours])
                else:
                    self.launch(ours)
            except (KeyboardInterrupt, SystemExit):
                if "ray" in sys.modules:
                    sys.modules["ray"].shutdown()  # ends the runs
                note_interrupted([store for _, store in todo.values()])
                raise
        signals.stop_if_asked()
        failed = {str(folder): why for folder, (_, store) in todo.items() if (why := why_missing(store))}
        reports = {f"the report of {study}": why for study in studies if (why := report_on(study))}
        signals.stop_if_asked()
        conclude(finished, list(todo), refused, failed, reports)

    def composed(self, jobs: list[Job]) -> Iterator[DictConfig]:
        """Yield the configuration of each job. It is the one that the launcher composes, ten times faster.

        Hydra sets single values last, on top of the groups. So each combination of groups is composed only once.
        """
        loader = self.hydra_context.config_loader
        parse = functools.cache(self.parser.parse_override)

        @functools.cache
        def compose(*overrides: str) -> DictConfig:
            cfg = loader.load_sweep_config(self.config, list(overrides))
            with open_dict(cfg):
                del cfg["hydra"]
            return cfg

        for job in jobs:
            values = [o for o in map(parse, job) if self.is_value(o)]
            cfg = deepcopy(compose(*(o for o in job if parse(o) not in values)))
            try:
                for o in values:
                    OmegaConf.update(cfg, o.key_or_group, o.value())
            except OmegaConfBaseException:
                cfg = compose(*job)  # raises Hydra's error, which names the key
            yield cfg

    def is_value(self, override: Override) -> bool:
        groups = self.config.hydra.runtime.choices
        return override.type is OverrideType.CHANGE and override.get_key_element() not in groups

    def runs_here(self) -> bool:
        """Whether the launcher is Hydra's own, which runs the jobs in this process, and is asked for nothing else."""
        h = self.config.hydra
        others = h.callbacks, h.job.env_set, h.job.chdir, h.output_subdir
        return (
            type(self.launcher).__name__ == "BasicLauncher"
            and not any(others)
            and h.runtime.choices["hydra/job_logging"] == "none"
        )

    def run_here(self, configs: list[DictConfig]) -> None:
        """Run the jobs one after the other. Hydra's launcher would compose each once more, at the cost of ten fits."""
        for cfg in configs:
            signals.stop_if_asked()
            self.task_function(cfg)

    def launch(self, jobs: list[Job]) -> None:
        """Launch the jobs. A launcher's error is about its workers and only printed: run folders say how runs ended."""
        if type(self.launcher).__name__ == "JoblibLauncher":
            end_workers_with_this_process()
        for batch in BasicSweeper.split_overrides_to_chunks(jobs, self.max_batch_size):
            signals.stop_if_asked()
            try:
                self.launcher.launch(batch, initial_job_idx=jobs.index(batch[0]))
            except KeyboardInterrupt:
                if "submitit" in sys.modules:
                    print("al_bench: Interrupted. The runs go on in Slurm; scancel stops them.", file=sys.stderr)
                    sys.exit(130)
                raise
            except Exception as error:
                print(f"al_bench: {type(error).__name__}: {error}", file=sys.stderr)
                if "submitit" in sys.modules:
                    wait_for_slurm()
                if "ray" in sys.modules:
                    wait_for_ray(error)


def register() -> None:
    """Register the Sweeper with Hydra, which takes sweepers only from packages below hydra_plugins."""
    Plugins.instance().class_name_to_class["hydra_plugins.al_bench.Sweeper"] = Sweeper


def sort_out(
    jobs: list[Job], configs: list[DictConfig]
) -> tuple[set[Path], dict[Path, tuple[Job, RunStore]], dict[str, str]]:
    """(folders of finished runs, what is left to run by folder, what cannot be run and why). Plans are only shown."""
    finished, todo, failed = set(), {}, {}
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    for job, cfg in zip(jobs, configs, strict=True):
        name = " ".join(o for o in job if o not in common) or "the run"
        try:
            c = config.read(cfg)
            if c.plan:
                from al_bench import plan

                plan.show(c)
                continue
            store = RunStore(c)
            if is_finished(store):
                finished.add(store.folder)
            elif (other := todo.setdefault(store.folder, (job, store))[1].config) != c:
                differ = differing_keys(*(config.flat(asdict(each)) for each in (other, c)))
                raise UserError(
                    f"{name}: another run of this sweep has the same folder, {store.folder}. "
                    f"Give each a name of its own: {separating_override(c, differ)}."
                )
        except (Exception, SystemExit) as error:
            print(f"al_bench: {describe(error)}", file=sys.stderr)
            failed[name] = describe(error)
    return finished, todo, failed


def note_planned(folders: set[Path]) -> None:
    """Note the seeds of each setting that the sweep plans, before a run of it can show a result."""
    for setting in {folder.parents[1] for folder in folders}:
        seeds = {int(f.name.removeprefix("seed=")) for f in folders if f.parents[1] == setting}
        try:
            planned.note(setting, seeds)
        except Exception as error:
            print(f"al_bench: {describe(error)} The report cannot tell seeds that are added later.", file=sys.stderr)


def end_workers_with_this_process() -> None:
    """End joblib's workers if this process is killed. Else they finish their run and wait five minutes for another."""
    from joblib import parallel

    class Loky(parallel.BACKENDS["loky"]):
        def configure(self, **settings: Any) -> int:
            return super().configure(**settings | {"initializer": signals.end_with_parent})

    parallel.register_parallel_backend("loky", Loky)


def note_interrupted(stores: list[RunStore]) -> None:
    """Note the state of runs whose worker was killed before it could. Slurm's jobs go on, so they are left out."""
    for store in stores if "submitit" not in sys.modules else ():
        with suppress(UserError, OSError):
            state = store.info().get("state")
            if state == RUNNING and state_of(store.folder, store.info()) == INTERRUPTED:
                store.note(state=INTERRUPTED, ended=now())


def message_of_empty_sweep(overrides: list[Override]) -> str:
    """Which setting makes a sweep empty, because it stands for no value."""
    none = next(o for o in overrides if o.is_discrete_sweep() and next(o.sweep_iterator(), None) is None)
    key = none.key_or_group
    why = "has no number in it" if none.is_range_sweep() else f"matches no option of a group {key}"
    return f"{none.input_line} {why}, so the sweep has no run. Several values are typed as 0,1,2 or 'range(10)'."


def describe(error: BaseException) -> str:
    """Why one run cannot be read, started or reported, in words. The other runs go on."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        path = error.filename2 or error.filename  # filename2: the file that was to be replaced
        return f"{path}: {error.strerror}. Correct it, or give these runs another folder: results_dir=... or study=..."
    return f"{error!r}."


def why_missing(store: RunStore) -> str | None:
    """Why a run that was launched is not finished, in words. None if it is finished."""
    try:
        info = store.info()
        return {
            "finished": None,
            "failed": info.get("error") or "failed",
            "interrupted": "interrupted",
            "waiting": "waits for a person's labels",
            "running": "killed, or at work in another process",
        }.get(info.get("state"), "not started")
    except Exception as error:
        return describe(error)


def report_on(study: Path) -> str | None:
    """Print the study's report. It is written anew if a run has changed since. Returns what went wrong, or None."""
    try:
        page = study / "report" / "index.html"
        if not is_current(page.parent):
            from al_bench.analysis import report

            page = report.write(study)
        print(in_words(page))
    except UserError as error:
        return str(error)
    except (Exception, SystemExit) as error:
        return f"{error!r}; the runs are kept: al-bench report {study}"


def first_line(why: object) -> str:
    """The first line of an error in run.json, and the next one if it announces that.

    The error may be of any type, since people may have edited the file.
    """
    first, *rest = str(why).split("\n")
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first


def conclude(
    finished: set[Path], todo: list[Path], refused: dict[str, str], failed: dict[str, str], reports: dict[str, str]
) -> None:
    """Print one line of counts. Raises SystemExit if runs or reports are missing, with one more line for each.

    refused, failed, reports: what is missing and why. A run that is refused never began.
    """
    if not (finished or todo or refused):
        return
    n_finished, n_failed = len(todo) - len(failed), len(refused) + len(failed)
    lines = [f"Sweep: {n_finished} finished, {len(finished)} there already, {n_failed} failed."]
    lines += [f"  {name}: {first_line(why)}" for name, why in (refused | failed | reports).items()]
    if refused:
        lines.append(f"{len(refused)} of them cannot begin until this is corrected.")
    if failed or reports:
        lines.append("The same command again runs only what is missing.")
    if len(lines) > 1:
        sys.exit("\n".join(lines))
    print(lines[0])


def wait_for_slurm() -> None:
    """Wait until all jobs have ended. submitit stops waiting at the first job that died without a result."""
    import submitit

    watcher = submitit.SlurmJob.watcher
    tasks = [job for job in watcher._registered if "_" in job]  # without the array itself, which never ends
    while not all(map(watcher.is_done, tasks)):
        time.sleep(1)


def wait_for_ray(error: Exception) -> None:
    """Wait until all tasks have ended. The launcher stops waiting at the first one whose worker died.

    The launcher keeps its tasks in a local variable, `runs`, which its error still refers to.
    """
    import ray

    local = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    tasks = next((names["runs"] for names in local if "runs" in names), [])
    if tasks:
        ray.wait(tasks, num_returns=len(tasks))
