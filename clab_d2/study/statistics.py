"""What a handful of seeds tell: means, paired differences and their confidence intervals.

All by Student's t. Runs of one seed share the order of their training clips and, as far as their
models agree, their initial weights, so that two configs are compared seed by seed (paired).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and how sure it is.

    Attributes:
        mean: NaN where there is no value.
        standard_error: sample standard deviation / sqrt(count); NaN below two values.
        low, high: confidence interval of the mean; NaN below two values.
        count: number of values.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does."""
        return self.low > 0 or self.high < 0

    @property
    def p_value(self) -> float:
        """How likely a mean so far from 0 is if the true one is 0 (two-sided t-test); NaN below
        two values."""
        if math.isnan(self.standard_error):
            return math.nan
        if self.standard_error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.count - 1))


def estimate(values: Iterable[float], confidence: float) -> Estimate:
    """Mean, standard error and t-based confidence interval of some values; NaN are left out.

    Args:
        values: one a seed.
        confidence: of the interval, between 0 and 1.
    """
    known = np.array([value for value in values if not math.isnan(value)], dtype=float)
    count = len(known)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if count == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    error = float(stats.sem(known))
    half = error * float(stats.t.ppf((1 + confidence) / 2, count - 1))
    return Estimate(mean, error, mean - half, mean + half, count)


def paired_differences(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> dict[int, float]:
    """``values`` less ``baseline``, by seed, where both have a value that is not NaN."""
    differences = {
        seed: value - baseline[seed] for seed, value in values.items() if seed in baseline
    }
    return {seed: value for seed, value in differences.items() if not math.isnan(value)}


def pooled_std(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation within groups, each having a mean of its own.

    Returns:
        The square root of the mean variance, weighted by degrees of freedom, and these; NaN and 0
        where no group has two values.
    """
    squares, freedom = 0.0, 0
    for group in groups:
        known = [value for value in group if not math.isnan(value)]
        if len(known) > 1:
            squares += float(np.var(known, ddof=1)) * (len(known) - 1)
            freedom += len(known) - 1
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of several tests hold together (Holm, Scandinavian Journal of Statistics, 1979).

    If nothing differs, the chance that any at all is named is at most ``level``, however the
    tests depend on each other.

    Args:
        p_values: one a test.
        level: as 0.05.

    Returns:
        For each test, whether it holds.
    """
    holds = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if not p_values[place] <= level / (len(p_values) - rank):
            break
        holds[place] = True
    return holds


def smallest_detectable_difference(
    std: float, count: int, confidence: float, power: float = 0.8
) -> float:
    """The true difference that a paired two-sided t-test of ``count`` seeds likely shows.

    That is, whose confidence interval then excludes 0 with probability ``power``. The test's
    statistic has a noncentral t distribution with noncentrality difference * sqrt(count) / std.

    Args:
        std: standard deviation of the differences by seed. Of a single config's values with
            standard deviation s it is sqrt(2) * s, if two configs' values of a seed are
            independent, and smaller the more they go together.
        count: number of seeds, at least 2.
        confidence: of the interval, between 0 and 1.
        power: how likely such a difference is found, between 1 - confidence and 1.

    Returns:
        The difference, in the unit of ``std``; NaN for a NaN.
    """
    if math.isnan(std) or std == 0:
        return std
    freedom = count - 1
    # The square of a two-sided t statistic, which spares the sum of two tails, is F distributed.
    critical = float(stats.t.ppf((1 + confidence) / 2, freedom))

    def missing(noncentrality: float) -> float:
        return float(stats.ncf.sf(critical**2, 1, freedom, noncentrality**2)) - power

    upper = critical
    while missing(upper) < 0:
        upper *= 2
    return float(optimize.brentq(missing, 0, upper)) * std / math.sqrt(count)
