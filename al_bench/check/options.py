"""Try a strategy of al_bench with its options before a run reads any image."""

import torch

from al_bench.check.inputs import Case
from al_bench.errors import UserError
from al_bench.strategies import Size, Strategy
from al_bench.strategies.guard import package_of, select


def try_out(strategy: Strategy) -> None:
    """Raise UserError if a strategy of al_bench cannot choose 2 of 12 random images with its options.

    A user's own strategy is not tried, because it may need more images than these.
    """
    if package_of(strategy.function) != "al_bench":
        return
    size = Size(P=12, L=6, S=(strategy.n_passes or 1) * (strategy.members or 1), C=3, D=4, F=4, k=2)
    try:
        select(strategy, Case(size).view(strategy.needs), size.k, torch.Generator(), 0)
    except UserError as error:
        if not isinstance(error.__cause__, TypeError | AttributeError):
            raise
        raise UserError(f"strategy {strategy.name}: its options do not fit it ({error.__cause__}).") from error
