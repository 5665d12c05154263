"""How many seeds a difference takes, and which difference a number of seeds shows. Numbers in, numbers out.

The power is that of a two-sided t-test at alpha. For a family of T strategies alpha is 0.05 / T: max_t of family.py has
a little more power than that.
"""

from scipy import optimize
from scipy import stats as tests

from al_bench.analysis import stats

POWER = 0.8  # where the true spread is known
DELIVERED = "about three times in four"  # what POWER comes to with a spread from few seeds (results/calibration/)
MOST = 10_000
LARGE = 100.0  # standard deviations, which any number of pairs shows


def power_of(effect: float, n: int, alpha: float) -> float:
    """The chance that n pairs show a difference in mean of `effect` standard deviations. 0 below 6 pairs.

    6 pairs show one only if all have the same sign.
    """
    if n < stats.FEWEST:
        return 0.0
    same_sign = tests.norm.cdf(effect) ** n if n == stats.FEWEST else 1.0
    by_t = float(tests.ncf.sf(tests.t.isf(alpha / 2, n - 1) ** 2, 1, n - 1, n * effect**2))
    return min(same_sign, by_t)


def seeds_needed(sd: float, difference: float, alpha: float = 0.05) -> int:
    """Pairs that show this difference in mean with the chance POWER. sd: of the paired differences.

    ValueError for a difference of 0 or one that 10,000 pairs do not show.
    """
    if difference == 0:
        raise ValueError("No number of seeds shows a difference of 0.")
    effect = min(abs(difference) / sd, LARGE) if sd else LARGE
    if power_of(effect, MOST, alpha) < POWER:
        raise ValueError(f"A difference of {difference:g} with sd {sd:g} would need more than {MOST:,} seeds.")
    too_few, enough = 1, MOST
    while enough - too_few > 1:  # the power grows with n
        n = (too_few + enough) // 2
        too_few, enough = (too_few, n) if power_of(effect, n, alpha) >= POWER else (n, enough)
    return enough


def detectable(n: int, sd: float = 1.0, alpha: float = 0.05) -> float:
    """The smallest difference in mean that n pairs show with the chance POWER; with sd = 1 it is d_z.

    ValueError below 6 pairs, which show nothing.
    """
    if n < stats.FEWEST:
        raise ValueError(f"{n} pairs never reach p <= 0.05, however large the difference.")
    return sd * optimize.brentq(lambda effect: power_of(effect, n, alpha) - POWER, 0, LARGE)
