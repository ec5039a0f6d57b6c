"""From a loss a token [B, T] to the micro-batch's share of the step's loss; the shares add up to it.

Each sequence counts with its example weight. Divisors belong to the whole optimiser step and count every sequence
once, whatever its weight.

Source: verl `agg_loss`; Liu et al. 2025, 2503.20783 (constant).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import SequenceBatch


def token_mean(values: Tensor, batch: SequenceBatch) -> Tensor:
    """Every covered token counts alike."""
    return (values * batch.mask * batch.weights[:, None]).sum() / batch.step_tokens


def sequence_mean(values: Tensor, batch: SequenceBatch) -> Tensor:
    """Every sequence counts alike: the mean over its covered tokens."""
    length = batch.mask.sum(1).clamp(min=1)
    return ((values * batch.mask).sum(1) / length * batch.weights).sum() / batch.step_sequences


def sequence_sum(values: Tensor, batch: SequenceBatch) -> Tensor:
    """The sum over each sequence's covered tokens, averaged over sequences."""
    return (values * batch.mask * batch.weights[:, None]).sum() / batch.step_sequences


def constant(values: Tensor, batch: SequenceBatch, length: float) -> Tensor:
    """The sum over each sequence's covered tokens over one length for all, averaged over sequences."""
    return sequence_sum(values, batch) / length


def per_sequence(values: Tensor, batch: SequenceBatch) -> Tensor:
    """One loss a sequence, [B, 1], averaged over sequences; one of which the loss covers nothing has no part."""
    covered = batch.mask.amax(1)
    return (values[:, 0] * covered * batch.weights).sum() / batch.step_sequences
