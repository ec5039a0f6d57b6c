"""Kahneman-Tversky optimisation: no pairs; each completion is good or bad against what the policy gives on average.

L = mean of 1 - sigmoid(beta (D - KL)) for good completions and 1 - sigmoid(beta (KL - D)) for bad ones, each times its
weight, D = log pi - log pi_reference of the completion. KL, the point of reference, is the mean of D over completions
put behind prompts that are not theirs, at least 0 and without gradient.

A reward above `threshold` makes a completion good; one that could not be scored counts for nothing.

Source: Ethayarajh et al. 2024, 2402.01306, eq. 7.
Changed: KL is the mean over the whole optimiser step; the paper has it of a micro-batch. It is taken before the step.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.lazy import torch
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Kto(Config):
    """Configuration of `kto`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    threshold: float = 0.5
    """Rewards above it are desirable."""
    desirable: NonNegativeFloat = 1.0
    """Weight of good completions; times their number 1 to 4/3 of the same for bad ones, says the paper."""
    undesirable: NonNegativeFloat = 1.0
    """Weight of bad completions."""


@stage("objective", examples="group", requires=("reference", "mismatched"))
def kto(config: Kto, *, batch: SequenceBatch) -> Loss:
    """Mean over scored completions; metrics: `kl`, and `margin`, good minus bad of beta D, each averaged over its own.

    Raises ValueError where the step has no `mismatched`.
    """
    if batch.step.mismatched is None:
        raise ValueError(
            'the batch has no mismatched: the objective\'s mark asks for them with requires=("mismatched",)'
        )
    kl = batch.step.mismatched.nanmean().nan_to_num().clamp(min=0).detach()  # 0 where no prompt has another's
    known = ~batch.rewards.isnan()
    good = batch.rewards > config.threshold
    reward = config.beta * ((batch.logps - batch.reference_logps) * batch.mask).sum(1)
    side = torch.where(good, reward - config.beta * kl, config.beta * kl - reward)
    weight = torch.where(good, config.desirable, config.undesirable) * batch.weights * known
    n_known = (~batch.step.rewards.isnan()).sum().clamp(min=1)
    share = len(batch.rows) / batch.step_sequences
    return Loss(
        (weight * (1 - side.sigmoid())).sum() / n_known, {"kl": float(kl) * share} | _margin(config, batch, reward)
    )


def _margin(config: Kto, batch: SequenceBatch, reward: torch.Tensor) -> dict[str, float]:
    """This micro-batch's share of it; a step without good or without bad completions has none of these."""
    everywhere = batch.step.rewards
    sides = ((1, everywhere > config.threshold), (-1, everywhere <= config.threshold))
    value = sum(
        sign * float((reward.detach() * batch.of(side)).sum()) / max(int(side.sum()), 1) for sign, side in sides
    )
    return {"margin": value}
