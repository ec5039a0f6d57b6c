"""Some of the step's sequences: which were solved, which are demonstrations, and means over a part of them.

A demonstration is a member of a group that has no reward: nobody sampled it, so nobody judged it. (Completions that
could not be judged are no examples of a group; the builders leave them out.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import SequenceBatch, StepRows


def binary(rewards: Tensor) -> Tensor:
    """The rewards, which must be 0 or 1 (or NaN): what counts solved ones has no sense for others.

    Raises ValueError naming the first that is neither.
    """
    wrong = rewards[~rewards.isnan() & (rewards != 0) & (rewards != 1)]
    if len(wrong):
        raise ValueError(
            f"this objective counts solved completions and needs rewards 0 and 1, got {wrong[0].item():g}: "
            "name a verifier that passes or fails as `scorer` of `grouped`"
        )
    return rewards


def evened(outcomes: Tensor, of: Tensor) -> Tensor:
    """[B] weights of outcomes 0 and 1 under which both kinds count alike among those `of` [S], where each has one."""
    right = (of > 0.5).sum()
    return len(of) / (2 * torch.where(outcomes > 0.5, right, len(of) - right))


def demonstrations(step: StepRows) -> Tensor:
    """[S] whether it is the demonstration of its group."""
    return step.rewards.isnan() & (step.group_ids >= 0)


def token_mean_of(values: Tensor, batch: SequenceBatch, chosen: Tensor) -> Tensor:
    """Mean over the covered tokens of the chosen [S] of the step's sequences: this micro-batch's share of it."""
    part = batch.of(chosen).to(values.dtype)
    tokens = batch.step.mask[chosen].sum().clamp(min=1)
    covered = torch.where(part[:, None] * batch.mask > 0, values, 0.0)
    return (covered * batch.weights[:, None]).sum() / tokens


def sequence_mean_of(values: Tensor, batch: SequenceBatch, chosen: Tensor) -> Tensor:
    """Mean of values [B] over the chosen [S] of the step's sequences: this micro-batch's share of it."""
    part = batch.of(chosen)
    return (torch.where(part, values, 0.0) * batch.weights).sum() / chosen.sum().clamp(min=1)
