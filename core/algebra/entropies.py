"""Of the entropy of the policy's own distribution at each target: as a weight, and to choose tokens by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.lazy import torch
from strop.core.trainer.objective import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import SequenceBatch


def entropy_of(batch: SequenceBatch) -> Tensor:
    """[B, T] with its gradient. Raises ValueError where there is none."""
    if batch.entropy is None:
        raise ValueError('the batch has no entropy: the objective\'s mark asks for it with requires=("entropy",)')
    return batch.entropy


def sequence_entropy(batch: SequenceBatch) -> Tensor:
    """[B] mean over each sequence's covered tokens, without gradient."""
    total = (entropy_of(batch).detach() * batch.mask).sum(1)
    return total / batch.mask.sum(1).clamp(min=1)


def share_of(mask: Tensor, share: float) -> Tensor:
    """[S] how many tokens are that share of each sequence: rounded down, one at least where there is any."""
    length = mask.sum(1)
    return torch.minimum((share * length + 1e-6).floor().clamp(min=1), length)


def largest(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """[B, T] 1 on the share of each sequence's covered tokens with the largest values; ties go to the earlier token."""
    order = torch.where(mask > 0, values.detach(), float("-inf")).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)
    return (place < share_of(mask, share)[:, None]).to(mask.dtype) * mask


def with_bonus(loss: Loss, coefficient: float, batch: SequenceBatch) -> Loss:
    """The loss less `coefficient` times the mean entropy of the step's covered tokens; metric `entropy`: that mean."""
    mean = token_mean(entropy_of(batch), batch)
    return Loss(loss.value - coefficient * mean, loss.metrics | {"entropy": float(mean.detach())})


def by_covariance(advantages: Tensor, batch: SequenceBatch, scale: float, most: float) -> Tensor:
    """[B, T] scale times the softmax along each completion of (A - mean A) log pi, at most `most`; without gradient.

    The mean of the advantages [S] is that over the step's covered tokens. A token that a completion's advantage makes
    surer of itself has a large part (Light-IF, 2508.03178).
    """
    lengths = batch.step.mask.sum(1)
    mean = (advantages * lengths).sum() / lengths.sum().clamp(min=1)
    covariance = (batch.of(advantages) - mean)[:, None] * batch.logps.detach()
    covered = batch.mask > 0
    shares = torch.where(covered, covariance, float("-inf")).softmax(1).nan_to_num()
    return (scale * shares).clamp(0, most)


def outside(entropy: Tensor, low: float, high: float) -> Tensor:
    """[B, T] how far each lies below low or above high; 0 in between."""
    return (low - entropy).clamp(min=0) + (entropy - high).clamp(min=0)
