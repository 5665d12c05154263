"""A sweep: compose every job, leave out what is finished, launch the rest, say how each ended.

Nothing here imports torch: a sweep that is finished returns at once.
"""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
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
from al_bench.analysis.results import INTERRUPTED, RUNNING, in_words, is_current, note_requested, state_of
from al_bench.errors import UserError
from al_bench.finished import is_finished
from al_bench.provenance import now
from al_bench.recipe import differing_keys, separating_override
from al_bench.store import RunStore

Job = list[str]  # the overrides of one run, as they would be typed


class Sweeper(SweeperPlugin):
    """Hydra's grid of jobs, of which only those are launched whose run is not finished.

    The job's composed configuration says which run it is, the run's folder whether it is finished: so the same command
    goes on after whatever ended it, under every launcher. Raises SystemExit where a run is missing at the end.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, Any] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.parser = OverridesParser.create(hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        HydraConfig.instance().set_config(self.config)  # for ${hydra:...} in a value
        asked = [f"{key}={values}" for key, values in self.params.items()] + arguments
        overrides = self.parser.parse_overrides(asked)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        if not jobs:
            raise UserError(empty(overrides))
        configs = list(self.composed(jobs))  # all of them first: a misspelt key stops before any run starts
        there, todo, failed = sort_out(jobs, configs)
        studies = {folder.parents[4] for folder in there | todo.keys()}
        for study in studies:
            try:
                note_requested(study, [folder for folder in there | todo.keys() if folder.parents[4] == study])
            except Exception as error:
                print(f"al_bench: {reason(error)} The report cannot name runs that never begin.", file=sys.stderr)
        if todo:
            print(f"Sweep: {len(todo)} to run, {len(there)} there already.", flush=True)
            try:
                self.launch([job for job, _ in todo.values()])
            except (KeyboardInterrupt, SystemExit):
                note_interrupted([store for _, store in todo.values()])
                raise
        signals.stop_if_asked()
        for folder, (_, store) in todo.items():
            if why := why_missing(store):
                failed[str(folder)] = why
        reports = {f"the report of {study}": why for study in studies if (why := report_on(study))}
        signals.stop_if_asked()
        conclude(there, list(todo), failed, reports)

    def composed(self, jobs: list[Job]) -> Iterator[DictConfig]:
        """The configuration of each job as its launcher will compose it, ten times faster.

        Hydra sets single values last, on top of the groups. So each combination of groups is composed once.
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
                cfg = compose(*job)  # raises it in Hydra's words, which name the key
            yield cfg

    def is_value(self, override: Override) -> bool:
        groups = self.config.hydra.runtime.choices
        return override.type is OverrideType.CHANGE and override.get_key_element() not in groups

    def launch(self, jobs: list[Job]) -> None:
        """Through Hydra's launcher. An error of its own is about workers: how each run ended, its folder says."""
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


def register() -> None:
    """Make the Sweeper known to Hydra, which takes sweepers only from packages below hydra_plugins."""
    Plugins.instance().class_name_to_class["hydra_plugins.al_bench.Sweeper"] = Sweeper


def sort_out(
    jobs: list[Job], configs: list[DictConfig]
) -> tuple[set[Path], dict[Path, tuple[Job, RunStore]], dict[str, str]]:
    """(folders of finished runs, what is left to run by folder, what cannot be run and why). A plan is only shown."""
    there, todo, failed = set(), {}, {}
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
                there.add(store.folder)
            elif (other := todo.setdefault(store.folder, (job, store))[1].config) != c:
                differ = differing_keys(*(config.flat(asdict(each)) for each in (other, c)))
                raise UserError(
                    f"{name}: another run of this sweep has the same folder, {store.folder}. "
                    f"Give each a name of its own: {separating_override(c, differ)}."
                )
        except (Exception, SystemExit) as error:
            print(f"al_bench: {reason(error)}", file=sys.stderr)
            failed[name] = reason(error)
    return there, todo, failed


def end_workers_with_this_process() -> None:
    """Where it is killed, joblib's workers would end their run, and wait five minutes for another."""
    from joblib import parallel

    class Loky(parallel.BACKENDS["loky"]):
        def configure(self, **settings: Any) -> int:
            return super().configure(**settings | {"initializer": signals.end_with_parent})

    parallel.register_parallel_backend("loky", Loky)


def note_interrupted(stores: list[RunStore]) -> None:
    """For workers that were killed before they could note it. Slurm's jobs go on."""
    for store in stores if "submitit" not in sys.modules else ():
        with suppress(UserError, OSError):
            state = store.info().get("state")
            if state == RUNNING and state_of(store.folder, store.info()) == INTERRUPTED:
                store.note(state=INTERRUPTED, ended=now())


def empty(overrides: list[Override]) -> str:
    """Which setting of a sweep stands for no value."""
    none = next(o for o in overrides if o.is_discrete_sweep() and next(o.sweep_iterator(), None) is None)
    key = none.key_or_group
    why = "has no number in it" if none.is_range_sweep() else f"matches no option of a group {key}"
    return f"{none.input_line} {why}, so the sweep has no run. Several values are typed as 0,1,2 or 'range(10)'."


def reason(error: BaseException) -> str:
    """Why one run cannot be read, begun or told of; the others go on."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        path = error.filename2 or error.filename  # of a file that should have been replaced, its own name
        return f"{path}: {error.strerror}. Mend that, or give these runs another place: results_dir=... or study=..."
    return f"{error!r}."


def why_missing(store: RunStore) -> str | None:
    """How a run that was launched ended, in words; None where it is finished."""
    try:
        info = store.info()
        return {
            "finished": None,
            "failed": info.get("error") or "failed",
            "interrupted": "interrupted",
            "running": "killed, or at work in another process",
        }.get(info.get("state"), "not started")
    except Exception as error:
        return reason(error)


def report_on(study: Path) -> str | None:
    """Write the study's report, unless nothing has changed since, and print it. Returns what went wrong."""
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
    """Of an error as run.json has it, which people may have edited."""
    return str(why).partition("\n")[0]


def conclude(there: set[Path], todo: list[Path], failed: dict[str, str], reports: dict[str, str]) -> None:
    """One line, and one more for each run and each report that is missing. Raises SystemExit where there is any."""
    if not (there or todo or failed):
        return
    n_finished = sum(str(folder) not in failed for folder in todo)
    lines = [f"Sweep: {n_finished} finished, {len(there)} there already, {len(failed)} failed."]
    lines += [f"  {name}: {first_line(why)}" for name, why in (failed | reports).items()]
    if failed or reports:
        sys.exit("\n".join([*lines, "The same command again runs only what is missing."]))
    print(lines[0])


def wait_for_slurm() -> None:
    """submitit gives up at the first job that died without a word, while the others go on."""
    import submitit

    watcher = submitit.SlurmJob.watcher
    tasks = [job for job in watcher._registered if "_" in job]  # the array, which never ends, is among the jobs
    while not all(map(watcher.is_done, tasks)):
        time.sleep(1)
