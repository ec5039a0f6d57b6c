"""Share of held-out problems solved by at least one of k completions, per category too, with bootstrap intervals.

Source: Chen et al. 2021, 2107.03374, eq. 1 (unbiased estimate).
Completions without a verdict and those whose verdict is an error count in neither number, so a problem may have fewer
than were sampled; problems with fewer than k are left out of pass@k, and a k that leaves none has no metric.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.plugin import Config, stage
from strop.core.slices import metrics_by_slice
from strop.core.statistics import pass_at_k as unbiased
from strop.core.verdicts import verdicts
from strop.storage.tables import Metric, Problem, Rollout, Score


class PassAtK(Config):
    """Which k, and how the interval is made."""

    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 8)
    """Completions a problem may try."""
    resamples: Annotated[int, Field(ge=1000)] = 2000
    """Bootstrap resamples of the problems."""


@stage("evaluate")
def pass_at_k(
    config: PassAtK, *, rollouts: list[Rollout], scores: list[Score], problems: dict[int, Problem], seed: int
) -> list[Metric]:
    """Metrics `pass@<k>` on the slice `heldout` and one for each `heldout/<category>`.

    Raises ValueError when there are rollouts but not one k that any problem has enough verdicts for.
    """
    verdict = verdicts(scores)
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for rollout in rollouts:
        said = verdict.get(rollout.rollout_id)
        if said in ("pass", "fail"):
            counts[rollout.problem_id][0] += 1
            counts[rollout.problem_id][1] += said == "pass"
    found = []
    for k in sorted(set(config.k)):
        values = {i: unbiased(n, correct, k) for i, (n, correct) in counts.items() if n >= k}
        found += metrics_by_slice(f"pass@{k}", values, problems, seed=seed, resamples=config.resamples)
    if rollouts and not found:
        most = max((n for n, _ in counts.values()), default=0)
        raise ValueError(
            f"pass@k needs {min(config.k)} judged completions of a problem, the most any has is {most} "
            f"({len(rollouts)} rollouts, {sum(v == 'error' for v in verdict.values())} could not be judged); "
            "raise `heldout.n` or lower `k`"
        )
    return found
