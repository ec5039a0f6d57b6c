"""Off-policy REINFORCE with a baseline below the mean: good completions pull more than bad ones push.

L = -mean over tokens of A log pi, A = r - (group mean + shift).

Source: Arnal et al. 2025, 2506.20520 (AsymRE), which shows that a baseline below the behaviour policy's value learns
steadily and one above it collapses.
"""

from __future__ import annotations

from strop.core.algebra.advantages import centred
from strop.core.algebra.aggregates import token_mean
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class AsymRe(Config):
    """Configuration of `asym_re`."""

    shift: float = -0.1
    """Added to the group's mean; below 0 also pulls towards the samples of groups without contrast."""


@stage("objective", examples="group")
def asym_re(config: AsymRe, *, batch: SequenceBatch) -> Loss:
    """Token-mean; no ratio."""
    advantage = batch.of(centred(batch.step.rewards, batch.step.group_ids, config.shift))[:, None]
    return Loss(token_mean(-advantage * batch.logps, batch))
