"""Named randomness: every draw says what it is for, so no draw can shift another."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(seed: int, purpose: str, round: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, purpose, round) alone, not on what was drawn before.

    The purpose never names the strategy: all strategies of one seed share split, initial set, initial weights and
    the order of batches, so their curves are paired.
    """
    return torch.Generator().manual_seed(_number(seed, purpose, round))


@contextmanager
def seeded(seed: int, purpose: str, round: int = 0) -> Iterator[None]:
    """Torch's global generators, set for the block, given back after it: weights and dropout take no generator."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_number(seed, purpose, round))
        yield


def of_member(purpose: str, member: int) -> str:
    """The purpose for one net of a committee. The first is the net that would be trained alone."""
    return f"{purpose} of member {member}" if member else purpose


def _number(seed: int, purpose: str, round: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{round}".encode()).digest()[:7], "big")
