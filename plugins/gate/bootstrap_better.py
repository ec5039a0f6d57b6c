"""Promotes the candidate when it solves more of the held-out problems, beyond what their choice could explain.

Source: paired bootstrap test, Koehn 2004 (Statistical significance tests for machine translation evaluation).
The held-out problems are the same in every round and looked at in each: over many rounds the champion's measured
value is a little optimistic. The test is one-sided, because a gate that keeps a worse candidate out is what is asked.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.plugin import Config, Examined, Verdict, stage
from strop.core.seeds import derive
from strop.core.statistics import bootstrap_means


class BootstrapBetter(Config):
    """How sure, and by how much."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.9
    """Share of resamples in which the gain must exceed `min_gain`."""
    min_gain: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    """Least gain in pass@1; negative tolerates a loss."""
    resamples: Annotated[int, Field(ge=1000)] = 5000
    """Bootstrap resamples of the problems."""


@stage("gate")
def bootstrap_better(config: BootstrapBetter, *, candidate: Examined, champion: Examined, seed: int) -> Verdict:
    """'promote' or 'keep'. Raises ValueError when no problem was judged under both policies."""
    import numpy as np

    shared = sorted(i for i in candidate.pass_rates if i in champion.pass_rates)
    if not shared:
        raise ValueError(
            "candidate and champion have no held-out problem in common that was judged under both: "
            "check the scores of their held-out rollouts for errors"
        )
    gains = sorted(candidate.pass_rates[i].rate - champion.pass_rates[i].rate for i in shared)
    means = bootstrap_means(gains, resamples=config.resamples, seed=derive(seed, "bootstrap_better"))
    low = float(np.quantile(means, 1 - config.confidence))
    better = low > config.min_gain
    before, after = (sum(e.pass_rates[i].rate for i in shared) / len(shared) for e in (champion, candidate))
    reason = (
        f"pass@1 {before:.3f} -> {after:.3f} on {len(shared)} held-out problems: the gain of {after - before:+.3f} is "
        f"{'above' if better else 'not above'} {config.min_gain:g} at {config.confidence:.0%} confidence "
        f"(lower bound {low:+.3f})"
    )
    return Verdict("promote" if better else "keep", reason)
