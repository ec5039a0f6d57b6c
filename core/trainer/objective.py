"""What an objective gets and gives: a typed batch of log-probabilities in, a scalar loss and its metrics out.

Shapes: B sequences, T target positions (right-padded). Log-probabilities are in nats, zero where the mask is zero.
Sums over the whole optimiser step are given as `step_*`, so that accumulation over micro-batches and over processes
changes nothing: divide by them, never by the micro-batch's own counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """SFT rows or members of groups."""

    logps: Tensor
    """[B, T] log-probability of each target token under the policy in training; carries the gradient."""
    mask: Tensor
    """[B, T] 1.0 on tokens the loss covers."""
    weights: Tensor
    """[B] example weights."""
    step_tokens: float
    """Sum of the mask over the whole optimiser step."""
    step_sequences: float
    """Sequences in the whole optimiser step."""
    rewards: Tensor | None = None
    """[B] rewards of 'group' examples; NaN where the rollout could not be scored."""
    group_ids: Tensor | None = None
    """[B] int64. A group stays within one optimiser step, but its members may lie in several micro-batches."""
    group_rewards: Tensor | None = None
    """[B, G] for each member the rewards of its whole group, itself included; NaN where unscored and as padding."""
    behaviour_logps: Tensor | None = None
    """[B, T] as sampled."""
    reference_logps: Tensor | None = None
    """[B, T] under the reference policy, when the objective's mark requires 'reference'."""


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Preference pairs."""

    chosen_logps: Tensor
    """[B, T] carries the gradient."""
    chosen_mask: Tensor
    """[B, T]"""
    rejected_logps: Tensor
    """[B, T'] carries the gradient."""
    rejected_mask: Tensor
    """[B, T']"""
    weights: Tensor
    """[B]"""
    margins: Tensor
    """[B] score of chosen minus score of rejected; NaN where unknown."""
    step_pairs: float
    """Pairs in the whole optimiser step."""
    step_chosen_tokens: float
    """Sum of the chosen masks over the whole optimiser step."""
    reference_chosen: Tensor | None = None
    """[B] sum over tokens under the reference policy, when the mark requires 'reference'."""
    reference_rejected: Tensor | None = None
    """[B]"""


@dataclass(frozen=True, slots=True)
class Loss:
    """A scalar to minimise and numbers to watch, each already divided so that micro-batches add up."""

    value: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
