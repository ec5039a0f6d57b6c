"""Learning mostly from mistakes: correct completions are reinforced a little, wrong ones pushed away fully.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)), A = positive for a correct completion and
-negative for a wrong one; no baseline. positive = 1, negative = 0 is PSR; positive = 0, negative = 1 is NSR.

Source: Zhu et al. 2025, 2506.01347 (PSR, NSR, W-REINFORCE).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, model_validator

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.lazy import torch
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class WReinforce(Config):
    """Configuration of `w_reinforce`."""

    positive: NonNegativeFloat = 0.1
    """Advantage of a correct completion."""
    negative: NonNegativeFloat = 1.0
    """A wrong one has this, negated."""
    above: float = 0.5
    """A completion is correct when its reward is above this."""
    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """And above 1 + high, where it is positive."""

    @model_validator(mode="after")
    def _learns(self) -> WReinforce:
        if self.positive == self.negative == 0:
            raise ValueError("w_reinforce learns nothing: set positive or negative above 0")
        return self


@stage("objective", examples="group", needs=("logps",))
def w_reinforce(config: WReinforce, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part."""
    rewards = batch.rewards
    advantage = torch.where(rewards > config.above, config.positive, -config.negative)
    advantage = torch.where(rewards.isnan(), 0.0, advantage)[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    return Loss(token_mean(clipped(advantage, ratio, config.low, config.high), batch))
