"""Supervised on every completion, in proportion to exp(reward / tau): better ones count for more, none for less than 0.

L = -mean over completions of exp(r / tau) sum over tokens of log pi. With the exponent of an advantage it is
advantage-weighted regression; tau to 0 is training on the best alone. In RISE the completion is the last turn of an
attempt to better an earlier one.

Source: RISE, Qu et al. 2024, 2407.18219 (cmu-mind/RISE); Peters and Schaal 2007 (reward-weighted regression).
Left out: which turns become examples, which is the builder's choice.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.aggregates import sequence_sum
from strop.core.algebra.lazy import torch
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class RewardWeightedSft(Config):
    """Configuration of `reward_weighted_sft`."""

    tau: PositiveFloat = 1.0
    """Difference of rewards that makes a completion count e times as much."""


@stage("objective", examples="group")
def reward_weighted_sft(config: RewardWeightedSft, *, batch: SequenceBatch) -> Loss:
    """Sum over tokens, mean over completions; those without a reward teach nothing."""
    rewards = batch.rewards
    weight = torch.where(rewards.isnan(), 0.0, (rewards.nan_to_num() / config.tau).exp())
    return Loss(sequence_sum(-weight[:, None] * batch.logps, batch))
