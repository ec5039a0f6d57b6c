"""Estimates with their intervals: unbiased pass@k, and the bootstrap over problems.

Source: pass@k from Chen et al. 2021, 2107.03374, eq. 1; percentile bootstrap from Efron and Tibshirani 1993, ch. 13.
Problems are resampled and their samples are not: the interval speaks of other problems of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_AT_ONCE = 1 << 20
"""Draws held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, what it rests on, and its interval."""

    value: float
    n: int
    low: float
    high: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k completions passes, estimated without bias from n, of which `correct` passed.

    Raises ValueError when k is larger than n: no unbiased estimate exists.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct}, k={k}")
    miss = 1.0
    for i in range(n - correct + 1, n + 1):
        miss *= max(0.0, 1 - k / i)
    return 1 - miss


def bootstrap_means(values: Sequence[float], *, resamples: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[resamples] means of as many values drawn with replacement. Raises ValueError when there are none."""
    import numpy as np

    if not len(values):
        raise ValueError("no values to resample")
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(array))
    parts = []
    for start in range(0, resamples, rows):
        picks = generator.integers(0, len(array), size=(min(rows, resamples - start), len(array)))
        parts.append(array[picks].mean(axis=1))
    return np.concatenate(parts)


def estimate(values: Sequence[float], *, seed: int, resamples: int = 2000, confidence: float = 0.95) -> Estimate:
    """Mean and percentile interval. The order of the values matters to the last digits: give them in a fixed one.

    Raises ValueError when there are no values.
    """
    import numpy as np

    means = bootstrap_means(values, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(np.mean(np.asarray(values, dtype=np.float64))), len(values), float(low), float(high))
