"""Learning mostly from mistakes: correct completions are reinforced a little, wrong ones pushed away fully.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)), A = positive for a correct completion and
-negative for a wrong one; no baseline. positive = 1, negative = 0 is PSR; positive = 0, negative = 1 is NSR.

Source: Zhu et al. 2025, 2506.01347 (PSR, NSR, W-REINFORCE).
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, model_validator

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.lazy import torch
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class WReinforce(Clip):
    """Configuration of `w_reinforce`."""

    positive: NonNegativeFloat = 0.1
    """Advantage of a correct completion."""
    negative: NonNegativeFloat = 1.0
    """A wrong one has this, negated."""
    above: float = 0.5
    """A completion is correct when its reward is above this."""

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
    return Loss(token_mean(surrogate(config, advantage, batch), batch))
