"""GRPO without its two biases: no division by the group's deviation, none by the completion's length.

L = sum over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) / (completions * length), A = r - group mean.

Source: Liu et al. 2025, 2503.20783 (Dr. GRPO); the constant length as in TRL 1.16.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.algebra.advantages import centred
from strop.core.algebra.aggregates import constant
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class DrGrpo(Config):
    """Configuration of `dr_grpo`."""

    length: PositiveInt = 256
    """What every completion's sum is divided by: the most tokens that were sampled (`max_tokens`)."""
    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """And above 1 + high, where it is positive."""


@stage("objective", examples="group", needs=("logps",))
def dr_grpo(config: DrGrpo, *, batch: SequenceBatch) -> Loss:
    """Unscaled advantages, one divisor for all."""
    advantage = batch.of(centred(batch.step.rewards, batch.step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    return Loss(constant(clipped(advantage, ratio, config.low, config.high), batch, config.length))
