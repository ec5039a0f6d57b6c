"""REINFORCE exactly on-policy, with the baseline of least variance: the group's mean weighted by length.

L = -mean over completions of the mean over tokens of A log pi, A = r - sum(length r) / sum(length).

Source: Hao et al. 2025, 2505.23585 (OPO).
"""

from __future__ import annotations

from strop.core.algebra.advantages import length_weighted
from strop.core.algebra.aggregates import sequence_mean
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Opo(Config):
    """Nothing to set: no clip, no deviation, no penalty."""


@stage("objective", examples="group")
def opo(config: Opo, *, batch: SequenceBatch) -> Loss:
    """Length counts the tokens that the loss covers."""
    step = batch.step
    advantage = batch.of(length_weighted(step.rewards, step.group_ids, step.mask.sum(1)))[:, None]
    return Loss(sequence_mean(-advantage * batch.logps, batch))
