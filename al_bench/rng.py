"""Named random streams: every draw names its purpose, so that no draw affects another."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(seed: int, purpose: str, round: int = 0) -> torch.Generator:
    """Return a CPU generator that depends only on (seed, purpose, round), not on earlier draws.

    The purpose never names the strategy. All strategies of one seed therefore share the split, the initial set, the
    initial weights and the order of batches, and their curves are paired.
    """
    return torch.Generator().manual_seed(_number(seed, purpose, round))


@contextmanager
def seeded(seed: int, purpose: str, round: int = 0) -> Iterator[None]:
    """Seed torch's global generators for the block, then restore them. Weights and dropout accept no generator."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_number(seed, purpose, round))
        yield


def of_member(purpose: str, member: int) -> str:
    """Return the purpose of a draw for one net of a committee. Member 0 is the net that would be trained alone."""
    return f"{purpose} of member {member}" if member else purpose


def _number(seed: int, purpose: str, round: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{round}".encode()).digest()[:7], "big")
