"""How different a policy's completions of one problem are: the share of distinct texts among them.

Falls while pass@1 rises: sharpening spends diversity. Source: distinct-n of whole completions, Li et al. 2016,
1510.03055.
"""

from __future__ import annotations

from strop.core.plugin import Config, stage
from strop.core.statistics import bootstrap
from strop.storage.tables import Metric, Rollout


class Diversity(Config):
    """Nothing to set."""


@stage("evaluate")
def diversity(config: Diversity, *, rollouts: list[Rollout], seed: int) -> list[Metric]:
    """Metric `diversity` in 1/n..1, mean over problems with two completions or more."""
    texts: dict[int, list[str]] = {}
    for rollout in rollouts:
        if rollout.finish_reason != "error":
            texts.setdefault(rollout.problem_id, []).append(rollout.completion)
    values = [len(set(found)) / len(found) for _, found in sorted(texts.items()) if len(found) > 1]
    if not values:
        return []
    found = bootstrap(values, seed)
    return [
        Metric(name="diversity", slice="heldout", value=found.mean, n=found.n, ci_low=found.low, ci_high=found.high)
    ]
