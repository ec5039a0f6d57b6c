"""REINFORCE++ made steady: log-ratios are bounded before the exponential, far-out advantages dropped.

L = mean over completions of the mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)); log rho within
ln 1000 on either side; A = rewards standardised over the step, 0 where beyond `sigmas` deviations.

Source: Zhang et al. 2025, 2505.02835 (R1-Reward, StableReinforce).
Changed: the paper's rule for far-out advantages; its released code compares unscaled rewards.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveFloat

from strop.core.algebra.advantages import plain
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.lazy import torch
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.algebra.spread import whitened
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class StableReinforce(Config):
    """Configuration of `stable_reinforce`."""

    sigmas: PositiveFloat = 3.0
    """Standardised advantages beyond this are set to 0."""
    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """And above 1 + high, where it is positive."""


@stage("objective", examples="group", needs=("logps",))
def stable_reinforce(config: StableReinforce, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part."""
    rewards = batch.step.rewards
    advantage = whitened(plain(rewards)[:, None], (~rewards.isnan()).to(rewards.dtype)[:, None])
    advantage = batch.of(torch.where(advantage.abs() > config.sigmas, 0.0, advantage))
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask, most=math.log(1000)).exp()
    return Loss(sequence_mean(clipped(advantage, ratio, config.low, config.high), batch))
