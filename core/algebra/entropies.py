"""Of the entropy of the policy's own distribution at each target: as a weight, and to choose tokens by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

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
