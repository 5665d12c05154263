"""A run that waits for the labels of a person. Nothing here imports torch."""

from collections.abc import Sequence
from typing import Any, Protocol

from al_bench.records import RUNNING, WAITING


class LabelsWanted(Exception):
    """The run goes on when a person has labelled these images. No error: it says what to label next.

    roles: test, validation or train by the image's path, in the order in which to ask. round: the first round that
    trains on them; 0 is the initial set.
    """

    def __init__(self, roles: dict[str, str], round: int) -> None:
        super().__init__(f"waits for {len(roles):,} label{'s' if len(roles) != 1 else ''}")
        self.roles, self.round = roles, round


class Person(Protocol):
    """Somebody who labels while the run goes on."""

    def wait_for_labels(self, wanted: LabelsWanted) -> None:
        """Return when labels.jsonl has these labels. Raises LabelsWanted if it will not while this run lives."""

    def decoded(self, paths: Sequence[str], images: Any) -> None:
        """Called once the images are decoded. images: uint8 [N, channels, H, W], of these paths."""

    def trained(self, learner: Any, net: Any, pool: Any) -> None:
        """Called after each round's record is written, with what the round trained."""


def wait_for(store: Any, roles: dict[str, str]) -> None:
    """Note in the run folder that the run waits for labels, and wait.

    store: the RunStore. roles: test, validation or train by the path of each image, in the order in which to ask.
    Raises LabelsWanted if nobody answers while this process runs.
    """
    wanted = LabelsWanted(roles, len(store.records()))
    store.note(state=WAITING, waits_for=len(roles))
    if store.person is None:
        raise wanted
    store.person.wait_for_labels(wanted)
    store.note(state=RUNNING)
