"""The runs of a published study, beside which a report sets one's own.

results/<study>/runs.tar.xz holds them as run folders: configuration, checksums, and the records with what each round
acquired.
"""

import io
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from al_bench.analysis import results
from al_bench.analysis.results import Run, Setting
from al_bench.errors import UserError
from al_bench.files import read_file, write_atomically
from al_bench.text import printable

ARCHIVE = "runs.tar.xz"
KEPT = ("config.yaml", *results.RUN)  # of a run


@dataclass(frozen=True)
class Published:
    """The runs of a study. name: of its folder."""

    name: str
    runs: list[Run]

    def joined(self, ours: list[Run]) -> tuple[list[Run], list[str]]:
        """Our runs, then theirs of the same data sets, models and budgets as if they were of each study of ours.

        The second is a sentence for each of our settings that has no runs there. Raises UserError if none has.
        """
        studies: dict[tuple[str, ...], dict[str, None]] = {}  # of ours by data set, model and budget, in their order
        for run in ours:
            studies.setdefault(run.setting[1:], {})[run.setting.study] = None
        there = {run.setting[1:] for run in self.runs}
        alone = [" / ".join(key) for key in studies if key not in there]
        if len(alone) == len(studies):
            listed = "".join(f"\n  {words}" for words in sorted({" / ".join(key) for key in there}))
            raise UserError(
                f"{self.name} has no runs of {', '.join(alone)}. It has runs of these data sets, models and "
                f"budgets:{listed}"
            )
        for key, names in [*studies.items()]:
            studies.setdefault((*key[:2], "full"), {}).update(names)  # the references
        theirs = [
            replace(run, setting=Setting(study, *run.setting[1:]), published=True)
            for run in self.runs
            for study in studies.get(run.setting[1:], ())
        ]
        return [*ours, *theirs], [printable(f"{self.name} has no runs of {words}.") for words in alone]


@contextmanager
def opened(folder: Path) -> Iterator[Published]:
    """The published runs in this folder. Their files are there for as long as the context lasts.

    Raises UserError where there are none or the archive is damaged.
    """
    with unpacked(folder) as place:
        yield Published(Path(os.path.abspath(folder)).name, results.find(place))


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """Where the run folders of a study lie: in its folder, or unpacked for as long as the context lasts.

    Raises UserError where the archive is damaged.
    """
    archive = folder / ARCHIVE
    if not archive.is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="al_bench-") as place:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="data")
        except (tarfile.TarError, EOFError, lzma.LZMAError, OSError) as error:
            raise UserError(f"{archive} cannot be unpacked ({error}). Download it again.") from None
        yield Path(place)


def pack(runs: Iterable[Run], top: Path, archive: Path) -> None:
    """Write the archive of these runs, whose folders lie below `top`. The same runs make the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tar:
        for run in sorted(runs, key=lambda run: run.folder):
            for name in KEPT:
                data, entry = read_file(run.folder / name), tarfile.TarInfo(os.path.relpath(run.folder / name, top))
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    write_atomically(archive, out.getvalue())
