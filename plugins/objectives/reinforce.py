"""The log-probability of each completion, weighted by its reward: no baseline, no ratio.

L = -mean over tokens of r log pi.

Source: Williams 1992 (REINFORCE). With rewards 0 and 1 it is `sft` on the correct completions, divided by the tokens
of all.
"""

from __future__ import annotations

from strop.core.algebra.advantages import plain
from strop.core.algebra.aggregates import token_mean
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Reinforce(Config):
    """Nothing to set."""


@stage("objective", examples="group")
def reinforce(config: Reinforce, *, batch: SequenceBatch) -> Loss:
    """Policy gradient with the reward as it is."""
    advantage = batch.of(plain(batch.step.rewards))[:, None]
    return Loss(token_mean(-advantage * batch.logps, batch))
