"""Promote the candidate when it is better than the champion beyond doubt: a paired bootstrap over held-out problems.

Source: paired bootstrap test, Efron and Tibshirani 1993; Koehn 2004 for its use on system outputs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.plugin import Config, Examined, Verdict, stage
from strop.core.statistics import bootstrap


class BootstrapBetter(Config):
    """How sure to be."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.9
    """One-sided: the share of resamples in which the candidate must be ahead."""
    min_gain: float = 0.0
    """Least gain in pass@1."""


@stage("gate")
def bootstrap_better(config: BootstrapBetter, *, candidate: Examined, champion: Examined, seed: int) -> Verdict:
    """promote or keep, with the gain and its lower bound in the reason. Raises ValueError without shared problems."""
    shared = sorted(set(candidate.pass_rates) & set(champion.pass_rates))
    if not shared:
        raise ValueError(
            "candidate and champion were examined on no common problem: is `heldout` sampled and verified?"
        )
    gains = [candidate.pass_rates[i].rate - champion.pass_rates[i].rate for i in shared]
    found = bootstrap(gains, seed, confidence=2 * config.confidence - 1)
    better = found.low > config.min_gain
    reason = (
        f"pass@1 {found.mean:+.3f} on {found.n} problems, at {config.confidence:.0%} confidence at least {found.low:+.3f}; "
        f"{'above' if better else 'not above'} {config.min_gain:+.3f}"
    )
    return Verdict("promote" if better else "keep", reason)
