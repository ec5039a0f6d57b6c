"""One number a problem into metrics: the whole held-out split, and each of its categories."""

from __future__ import annotations

from collections.abc import Mapping

from strop.core.problems import by_key
from strop.core.seeds import derive
from strop.core.statistics import estimate
from strop.storage.tables import Metric, Problem


def metrics_by_slice(
    name: str, values: Mapping[int, float], problems: Mapping[int, Problem], *, seed: int, resamples: int
) -> list[Metric]:
    """Metrics of the slices `heldout` and `heldout/<category>`: mean over problems, with its 95 % bootstrap interval.

    `values` by problem id; none gives no metric. Problems without a category count in `heldout` alone.
    """
    measured = by_key(problems[i] for i in values)
    slices = {"heldout": measured} if measured else {}
    for category in sorted({p.category for p in measured if p.category is not None}):
        slices[f"heldout/{category}"] = [p for p in measured if p.category == category]
    found = []
    for slice_name, members in slices.items():
        numbers = [values[p.problem_id] for p in members]
        made = estimate(numbers, seed=derive(seed, name, slice_name), resamples=resamples)
        found.append(
            Metric(name=name, slice=slice_name, value=made.value, n=made.n, ci_low=made.low, ci_high=made.high)
        )
    return found
