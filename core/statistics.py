"""The few numbers every evaluation needs: unbiased pass@k and bootstrap intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over problems with its percentile bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one of k of n completions is correct: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, 2107.03374).

    Raises ValueError when there are fewer than k.
    """
    if n < k:
        raise ValueError(f"pass@{k} needs at least {k} completions a problem, there are {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def bootstrap(values: Sequence[float], seed: int, *, confidence: float = 0.95) -> Interval:
    """Mean of the values and the percentile interval of the means of resamples. Raises ValueError when there are none."""
    if not values:
        raise ValueError("an interval needs at least one value")
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(data))
