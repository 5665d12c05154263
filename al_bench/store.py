"""The run folder: the record is the checkpoint.

    config.yaml     the run's configuration; another one is refused
    run.json        state, checksums of the data, the initial set, the weights and the code, versions and hardware
    rounds.jsonl    one line per finished round, on disk before the next round starts; resuming replays `acquired`
    run.log         what the screen showed
    weights/        for trainer.start=previous|best: what the next round needs

Nothing here imports torch.
"""

import json
import logging
import os
import shutil
import traceback
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import filelock
from omegaconf import OmegaConf

from al_bench import signals
from al_bench.config import Annotator, Config, flat
from al_bench.errors import UserError
from al_bench.files import DISK, accessible, is_there, read_file, write_atomically
from al_bench.provenance import circumstances, code_version, file_version, now, version_of
from al_bench.recipe import (
    NOT_COMPARED,
    SAME_IN_ALL_ROUNDS,
    as_file_name,
    differing_keys,
    read_recipe,
    run_folder,
    run_name,
    separating_override,
)
from al_bench.records import RoundRecord, is_complete, read_json, read_records, split_lines
from al_bench.text import Formatter
from al_bench.waiting import LabelsWanted, Person

log = logging.getLogger("al_bench")

# What a run began with, by its name in run.json, and what is said of it if it is another now
BEGAN_WITH = {
    "dataset": "other data: its images or labels changed since",
    "initial_set": "another initial set: it is drawn otherwise now",
    "validation_set": "another validation set: it is drawn otherwise now",
    "strategy_code": "other code of its strategy: {modules} changed since",
    "model_code": "other code of its net: {modules} changed since",
    "metrics_code": "other code of its metrics: {modules} changed since",
}


class RunStore:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = run_folder(config)
        self.name = run_name(flat(asdict(config)))
        self.rounds_path = self.folder / "rounds.jsonl"
        self.at_end = ExitStack()  # closed when the work in the folder ends, however it ends
        self.person: Person | None = None

    def finished(self) -> bool:
        """Whether the run is finished. Raises UserError if its rounds have another configuration, weights or code."""
        with accessible(self.folder, "read"):
            self._refuse_another_recipe()
            return self.info().get("state") == "finished" and is_complete(self.records())

    def info(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        return read_json(path) if is_there(path) else {}

    def note(self, **facts: Any) -> None:
        """Write these facts into run.json, unless it says the same already: each write waits for the disk."""
        before = self.info()
        if any(name not in before or before[name] != fact for name, fact in facts.items()):
            write_atomically(self.folder / "run.json", json.dumps(before | facts, indent=1) + "\n")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lock the folder and note how the work ends: finished, failed, interrupted. A killed run stays "running"."""
        with accessible(self.folder, "written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "run.log").touch()
        with self._locked(), self._logged(), signals.handled(), self.at_end:
            with accessible(self.folder, "read"):
                self._drop_torn_line()
                self._refuse_another_recipe()
                self._warn_of_code_not_compared()
            with self._ends_noted():
                self._begin()
                with signals.handled():
                    yield
                self.at_end.close()
                shutil.rmtree(self.folder / "weights", ignore_errors=True)
                self.note(state="finished", ended=now())

    def _begin(self) -> None:
        """Write config.yaml, and note this start in run.json."""
        if self.records() and not is_there(self.folder / "run.json"):
            log.warning(
                f"{self.folder} has lost its run.json, so images, weights and code cannot be compared with those "
                "of the finished rounds; going on."
            )
        if not self.records():  # nothing to protect: a corrected command may start here
            # The id belongs to this run alone. Another folder, or a deleted run, may have had the same name.
            fresh = {"id": self.info().get("id", uuid.uuid4().hex)}
            write_atomically(self.folder / "run.json", json.dumps(fresh) + "\n")
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.config)))
        self.note(state="running", error=None, starts=[*self.info().get("starts", []), circumstances()])

    @contextmanager
    def _ends_noted(self) -> Iterator[None]:
        """If the work ends early, note in run.json how it ended, and raise the error that the user is to see."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as end:
            signals.listen_again()
            if isinstance(end, SystemExit) and not signals.asked_to_stop():
                log.debug(traceback.format_exc())
                self._leave("failed", ended := f"sys.exit({end.code!r}) was called by code that the run uses")
                raise UserError(f"{ended}: {self.folder}/run.log says where.") from end
            self._leave("interrupted", None)
            log.info(f"Interrupted; {self._kept()} The same command goes on from there.")
            raise SystemExit(signals.exit_code()) from None
        except LabelsWanted:
            self.note(ended=now())
            raise
        except UserError as error:
            # The cause may be in a user's own code.
            log.debug(traceback.format_exc() if error.__cause__ else str(error))
            self._leave("failed", str(error))
            raise
        except Exception as error:
            log.debug(traceback.format_exc())  # to run.log; the screen gets Hydra's report
            if isinstance(error, OSError) and (what := DISK.get(error.errno)):
                self._leave("failed", what)
                raise UserError(
                    f"{what} ({error.filename or self.folder}); {self._kept()} Make room and type the same command."
                ) from None
            # The error of submitit after the last time-out that it may requeue for. submitit need not be installed.
            out_of_time = type(error).__name__ == "UncompletedJobError"
            self._leave("interrupted" if out_of_time else "failed", repr(error))
            raise

    def identify(self, dataset: dict[str, Any], sets: dict[str, dict[str, Any]]) -> None:
        """Note the data, the drawn sets and the code in run.json. Raises UserError if the run began with others.

        dataset: Dataset.facts(). sets: Pool.facts().
        """
        listing = dataset["images"] and os.path.relpath(dataset["images"], self.folder)
        facts = {"dataset": dataset | {"images": listing}, **sets, **self._code_versions()}
        self._refuse_another(**facts)
        self.note(**facts)

    def images_moved(self) -> bool:
        """Whether dataset.root names another folder now than it did in the finished rounds."""
        there, here = read_recipe(self.folder / "config.yaml").get("dataset.root"), self.config.dataset.root
        noted = (self.info().get("dataset") or {}).get("checksum")
        moved = bool(noted and here and there) and _resolved(here) != _resolved(there)
        if moved:
            log.info(f"dataset.root was {there}, and is {here} now. The images are compared by their checksum.")
        return moved

    def compare_images(self, checksum: str) -> None:
        """Raises UserError if the run began with images of another checksum."""
        self._refuse_another(dataset={"checksum": checksum})

    def identify_weights(self, **found: str | None) -> None:
        """Note which weights the nets begin from. Raises UserError if the run began with others.

        found: what nets.weights_version returns for the model or the features.
        """
        noted = self.info().get("weights") or {}
        for name, version in found.items():
            if name in noted and noted[name] != version:
                raise UserError(self._other_weights(name, noted[name], version))
        if found.items() - noted.items():
            self.note(weights=noted | found)

    def note_hardware(self, **facts: Any) -> None:
        """Note what this start computes on, and warn if the finished rounds were computed on something else."""
        *before, now = self.info()["starts"]
        self.note(starts=[*before, now | facts])
        for name, fact in facts.items():
            if self.records() and before and before[-1].get(name, fact) != fact:
                log.warning(f"The rounds so far were computed with {name} {before[-1][name]}; going on with {fact}.")

    def records(self) -> list[RoundRecord]:
        """The finished rounds, in order. A torn last line is left out."""
        if not is_there(self.rounds_path):
            return []
        return read_records(self.rounds_path, self.name, self.config.oracle is Annotator.person)

    def append(self, record: RoundRecord) -> None:
        """Append the record, with the run's name, and sync it to disk. An OSError leaves the file unchanged."""
        left = memoryview(json.dumps(asdict(replace(record, run=self.name)), allow_nan=False).encode() + b"\n")
        with open(self.rounds_path, "ab", buffering=0) as file:  # a buffer would write its rest on closing
            before = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.rounds_path, before)
                raise

    def _kept(self) -> str:
        return f"{len(self.records())} finished rounds are kept."

    def _leave(self, state: str, error: str | None) -> None:
        try:
            self.note(state=state, error=error, ended=now())
        except OSError:
            log.error(f"The state could not be written to {self.folder}/run.json.")

    def _refuse_another_recipe(self) -> None:
        """Raises UserError if the finished rounds were made by another configuration, other weights or code."""
        path = self.folder / "config.yaml"
        if not self.records():
            return
        if not is_there(path):
            raise UserError(
                f"{self.folder} has finished rounds and no config.yaml, so their configuration is unknown. Bring "
                "config.yaml back, or delete the folder to begin anew."
            )
        there, here, info = read_recipe(path), flat(asdict(self.config)), self.info()
        self._refuse_namesake(str(there.get("study")))
        noted = info.get("weights") or {}
        ignored = NOT_COMPARED - SAME_IN_ALL_ROUNDS | {f"{name}.weights" for name in noted}
        ignored |= {k for k in here if k.startswith("features.")} if info.get("features") is None else set()
        differ = [k for k in differing_keys(there, here) if k not in ignored]
        if differ:
            lines = "\n".join(f"  {k}: there {there.get(k)!r}, asked {here.get(k)!r}" for k in differ)
            override = separating_override(self.config, differ)
            raise UserError(
                f"{self.folder} was made by another configuration:\n{lines}\n"
                f"Ask for the same again, give these runs a name of their own ({override}), or delete the folder."
            )
        for name, version in noted.items():
            self._refuse_another_file(name, version, here[f"{name}.weights"])
        self._refuse_another(**self._code_versions())

    def _refuse_namesake(self, study: str) -> None:
        """Raises UserError if another study has the same folder, because both names give one file name.

        A study that was renamed is not refused: its folder had another name.
        """
        ours = self.config.study
        if study != ours and as_file_name(study).casefold() == as_file_name(ours).casefold():
            raise UserError(
                f"study={study} and study={ours} have the same folder, {self.folder.parents[4]}, and it holds the runs "
                f"of study={study}. Give this study another name."
            )

    def _refuse_another_file(self, name: str, noted: str | None, path: str | None) -> None:
        """noted: what nets.weights_version returned at the first start. A missing file is told when it is needed."""
        asked = path and file_version(path)
        is_file = (noted or "").startswith("sha256:")
        if is_file != bool(path) or (asked and asked != noted):
            raise UserError(self._other_weights(name, noted, asked or path))

    def _other_weights(self, name: str, noted: str | None, found: str | None) -> str:
        path = getattr(self.config, name).weights
        return (
            f"{self.folder} began with other weights: {name}.weights was {noted}, and is {found} now"
            f"{f' ({path})' if path else ''}. Bring the old weights back, give these runs a name of their own "
            "(study=...), or delete the folder."
        )

    def _code_versions(self) -> dict[str, dict[str, Any] | None]:
        """Versions of the code of the strategy (None on the full data) and of a user's own net and metrics."""
        c = self.config
        own_net = None if c.model._target_.startswith("al_bench.") else code_version({"net": c.model._target_})
        return {
            "strategy_code": None if c.budget.initial is None else code_version(c.strategy),
            "model_code": own_net,
            "metrics_code": code_version({"metrics": c.metrics}),
        }

    def _warn_of_code_not_compared(self) -> None:
        """Earlier versions of al_bench noted another checksum of the code, under the keys that end in _version."""
        info = self.info()
        for part in ("strategy", "model"):
            if info.get(f"{part}_version") and not info.get(f"{part}_code") and self.records():
                log.warning(
                    f"{self.folder} was begun by an earlier al_bench. Its checksum of the {part}'s code cannot be "
                    f"compared with today's, so it is unknown whether the {part}'s code has changed; going on."
                )

    def _refuse_another(self, **facts: dict[str, Any] | None) -> None:
        info = self.info()
        for name, fact in facts.items():
            there = info.get(name)  # missing before the first start, and in runs of versions that noted no such fact
            if there and fact and version_of(there) != version_of(fact):
                own = "strategy.name" if name == "strategy_code" else "study"
                modules = ", ".join(differing_keys(there.get("modules") or {}, fact.get("modules") or {}))
                raise UserError(
                    f"{self.folder} began with {BEGAN_WITH[name].format(modules=modules)}. Bring the old state back, "
                    f"give these runs a name of their own ({own}=...), or delete the folder."
                )

    def _drop_torn_line(self) -> None:
        if not is_there(self.rounds_path):
            return
        data = read_file(self.rounds_path)
        _, torn = split_lines(data)
        if torn:
            os.truncate(self.rounds_path, len(data) - len(torn))
            log.warning(f"The last line of {self.rounds_path} was cut short; its round is done again.")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The kernel releases it when the process dies. One second, since results.state_of may hold it for a moment.
        lock = filelock.FileLock(self.folder / ".lock", timeout=1)
        with accessible(self.folder, "written"):
            try:
                lock.acquire()
            except filelock.Timeout:
                raise UserError(
                    f"Another process is at work in {self.folder}. Wait for it or stop it: two would spoil the records."
                ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        with accessible(self.folder, "written"):
            handler = logging.FileHandler(self.folder / "run.log")
        handler.handleError = lambda record: None  # a full disk is reported once, by the record that does not fit
        handler.setFormatter(Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            with suppress(OSError):  # as above
                handler.close()


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
