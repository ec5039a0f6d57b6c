"""REINFORCE++ made steady: log-ratios are bounded before the exponential, far-out advantages dropped.

L = mean over completions of the mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)); log rho within
ln 1000 on either side; A = rewards standardised over the step, 0 where beyond `sigmas` deviations.

Source: Zhang et al. 2025, 2505.02835 (R1-Reward, StableReinforce).
Changed: the paper's rule for far-out advantages; its released code compares unscaled rewards.
"""

from __future__ import annotations

import math

from pydantic import PositiveFloat

from strop.core.algebra.advantages import plain
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.lazy import torch
from strop.core.algebra.spread import whitened
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class StableReinforce(Clip):
    """Configuration of `stable_reinforce`."""

    sigmas: PositiveFloat = 3.0
    """Standardised advantages beyond this are set to 0."""


@stage("objective", examples="group", needs=("logps",))
def stable_reinforce(config: StableReinforce, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part."""
    rewards = batch.step.rewards
    advantage = whitened(plain(rewards)[:, None], (~rewards.isnan()).to(rewards.dtype)[:, None])
    advantage = batch.of(torch.where(advantage.abs() > config.sigmas, 0.0, advantage))
    return Loss(sequence_mean(surrogate(config, advantage, batch, most=math.log(1000)), batch))
