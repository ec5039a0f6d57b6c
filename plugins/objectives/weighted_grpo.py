"""Hard and easy prompts as equals, and what is rare in each amplified: a success of the hard, a failure of the easy.

L = half the mean over completions of hard prompts and half that of easy ones, of the mean over tokens of
-w min(A rho, A clip(rho, 1 - low, 1 + high)), A standardised in the group. A prompt is hard where at most half of its
completions are solved; w = `success` for a solved completion of a hard prompt, `failure` for a failed one of an easy
prompt, else 1. Prompts solved always or never have no part.

Source: "Beyond Variance: Prompt-Efficient RLVR via Rare-Event Amplification and Bidirectional Pairing" (Weighted GRPO).
The authors' weights were not at hand: derived from the abstract, the defaults are not their word. Weights on outcomes
before the standardisation would cancel, so they stand after it.
Changed: all prompts of the step stand in for one hard and one easy prompt an update. One side alone counts fully.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.groups import group_mean
from strop.core.algebra.lazy import torch
from strop.core.algebra.subsets import binary, sequence_mean_of
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class WeightedGrpo(Clip):
    """Configuration of `weighted_grpo`."""

    success: PositiveFloat = 2.0
    """Weight of a solved completion of a hard prompt."""
    failure: PositiveFloat = 2.0
    """Weight of a failed completion of an easy prompt."""


@stage("objective", examples="group", needs=("logps",))
def weighted_grpo(config: WeightedGrpo, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part."""
    rewards = binary(batch.step.rewards)
    rate = group_mean(rewards, batch.step.group_ids)
    taught = ~rewards.isnan() & (rate > 0) & (rate < 1)
    hard, easy = taught & (rate <= 0.5), taught & (rate > 0.5)
    weight = torch.where(hard & (rewards == 1), config.success, 1.0)
    weight = torch.where(easy & (rewards == 0), config.failure, weight)
    advantage = batch.of(weight * standardised(rewards, batch.step.group_ids))[:, None]
    loss = surrogate(config, advantage, batch) * batch.mask
    loss = loss.sum(1) / batch.mask.sum(1).clamp(min=1)
    sides = [side for side in (hard, easy) if bool(side.any())] or [taught]
    parts = [sequence_mean_of(loss, batch, side) for side in sides]
    return Loss(torch.stack(parts).mean())
