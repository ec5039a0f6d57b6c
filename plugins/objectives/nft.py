"""Negative-aware fine-tuning: maximum likelihood on correct completions, and on wrong ones of the policy they imply.

A sampler that solves a share q of a prompt is a mixture of a right and a wrong policy. Training the right one,
rho = pi / pi_behaviour, fixes the wrong one, (1 - q rho) / (1 - q); both are trained on their own completions:

L = -sum over tokens of w (r log rho + (1 - r) log max((1 - q rho) / (1 - q), 1)) / length,

where the gradient passes the max unharmed. On samples of the policy itself, w = 1 - q is Dr. GRPO and
w = sqrt((1 - q) / q) is GRPO (with the deviation over n).

Source: Chen et al. 2025, 2505.18116; bounds as in its code (NVlabs/NFT).
Changed: averaged over the sequences of groups with contrast, as their sampler leaves the others out beforehand; the
ratio's denominator is the distribution that was sampled from.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from strop.core.algebra.groups import group_mean
from strop.core.algebra.lazy import torch
from strop.core.algebra.likelihoods import complement
from strop.core.algebra.subsets import binary, sequence_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch

LARGEST = 10.0
"""Of log rho."""
EDGE = 0.02
"""Solve rates are kept this far from 0 and 1."""


class Nft(Config):
    """Configuration of `nft`."""

    prompt_weight: Literal["linear", "root"] = "root"
    """How hard prompts count for more: 1 - q ('linear', as in Dr. GRPO) or sqrt((1 - q) / q) ('root', as in GRPO)."""
    negative: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of the wrong completions; 0 = rejection-sampling fine-tuning."""
    length: PositiveFloat = 1000.0
    """What sums over tokens are divided by."""


@stage("objective", examples="group", needs=("logps",))
def nft(config: Nft, *, batch: SequenceBatch) -> Loss:
    """Groups without contrast, and completions without a reward, take no part."""
    rewards = binary(batch.step.rewards)
    rate = group_mean(rewards, batch.step.group_ids)
    taught = ~rewards.isnan() & (rate > 0) & (rate < 1)
    solved = batch.of(rate).nan_to_num(0.5).clamp(EDGE, 1 - EDGE)[:, None]
    weight = 1 - solved if config.prompt_weight == "linear" else ((1 - solved) / solved).sqrt()
    log_ratio = ((batch.logps - batch.behaviour_logps) * batch.mask).clamp(max=LARGEST)
    right = batch.rewards[:, None] == 1
    gain = torch.where(right, log_ratio, config.negative * complement(log_ratio, solved))
    return Loss(sequence_mean_of(-(weight * gain * batch.mask).sum(1) / config.length, batch, taught))
