"""Online policy mirror descent: REINFORCE on rewards centred in the group, with a step tempered by tau.

L = -mean over tokens of A log pi / (1 + tau), A = r - group mean, or r - tau log mean exp(r / tau).

Source: Trinity-RFT (Pan et al. 2025, 2505.17826), its `opmd` policy loss and advantage.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from strop.core.algebra.advantages import centred, softened
from strop.core.algebra.aggregates import token_mean
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Opmd(Config):
    """Configuration of `opmd`."""

    tau: PositiveFloat = 1.0
    """Temperature; larger = smaller steps."""
    baseline: Literal["mean", "softmax"] = "mean"
    """What is taken off the rewards of a group."""


@stage("objective", examples="group")
def opmd(config: Opmd, *, batch: SequenceBatch) -> Loss:
    """No ratio: what the policy would say today does not matter."""
    rewards, ids = batch.step.rewards, batch.step.group_ids
    found = centred(rewards, ids) if config.baseline == "mean" else softened(rewards, ids, config.tau)
    advantage = batch.of(found)[:, None] / (1 + config.tau)
    return Loss(token_mean(-advantage * batch.logps, batch))
