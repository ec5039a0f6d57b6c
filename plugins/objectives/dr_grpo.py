"""GRPO without its two biases: no division by the group's deviation, none by the completion's length.

L = sum over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) / (completions * length), A = r - group mean.

Source: Liu et al. 2025, 2503.20783 (Dr. GRPO); the constant length as in TRL 1.16.
"""

from __future__ import annotations

from pydantic import PositiveInt

from strop.core.algebra.advantages import centred
from strop.core.algebra.aggregates import constant
from strop.core.algebra.clip import Clip, surrogate
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class DrGrpo(Clip):
    """Configuration of `dr_grpo`."""

    length: PositiveInt = 256
    """What every completion's sum is divided by: the most tokens that were sampled (`max_tokens`)."""


@stage("objective", examples="group", needs=("logps",))
def dr_grpo(config: DrGrpo, *, batch: SequenceBatch) -> Loss:
    """Unscaled advantages, one divisor for all."""
    advantage = batch.of(centred(batch.step.rewards, batch.step.group_ids))[:, None]
    return Loss(constant(surrogate(config, advantage, batch), batch, config.length))
