"""Values that need not be computed again in one process: a function of `Known` arguments under functools.lru_cache."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Known(Generic[Value]):
    """A value, and what changes whenever it does: a checksum, or the stamp of its files.

    Two of them are equal if these are, so a cached function with such an argument computes again after a change only.
    """

    identity: Hashable
    value: Value = field(compare=False)
