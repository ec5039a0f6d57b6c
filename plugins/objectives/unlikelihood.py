"""Supervised on correct completions, and against the tokens of wrong ones.

L = mean over tokens of -log pi where the completion is right and of -alpha log(1 - pi) where it is wrong. Unlike a
negative advantage on log pi, the push fades as a token becomes unlikely, so the loss is bounded below.

Source: Li et al. 2019, 1911.03860 (whole completions); Welleck et al. 2019, 1908.04319 (tokens).
Changed: both kinds share one divisor, the tokens of completions that have a reward.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.algebra import likelihoods
from strop.core.algebra.lazy import torch
from strop.core.algebra.subsets import binary, token_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Unlikelihood(Config):
    """Configuration of `unlikelihood`."""

    alpha: NonNegativeFloat = 1.0
    """Weight of the wrong completions; 0 = `sft` on the correct ones."""


@stage("objective", examples="group")
def unlikelihood(config: Unlikelihood, *, batch: SequenceBatch) -> Loss:
    """Token mean over completions that have a reward."""
    rewards = binary(batch.step.rewards)
    right = batch.rewards[:, None] == 1
    gain = torch.where(right, batch.logps, config.alpha * likelihoods.unlikelihood(batch.logps))
    return Loss(token_mean_of(-gain, batch, ~rewards.isnan()))
