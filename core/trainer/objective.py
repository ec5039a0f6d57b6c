"""What an objective gets and gives: a typed batch of log-probabilities in, a scalar loss and its metrics out.

Shapes: S sequences in the whole optimiser step, B of them in this micro-batch, T target positions (right-padded).
Log-probabilities are in nats, zero where the mask is zero. What a loss divides by, and every statistic over a group or
a batch, comes from the whole step: `step_*` and `SequenceBatch.step`. So accumulation over micro-batches and over
processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ASKED = {
    "behaviour_logps": 'needs=("logps",)',
    "old_logps": 'requires=("old",)',
    "reference_logps": 'requires=("reference",)',
    "old_values": 'requires=("values",)',
}
"""What an objective's mark says to have them."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """All sequences of one optimiser step, as far as they do not depend on the policy in training."""

    mask: Tensor
    """[S, T] 1.0 on tokens the loss covers."""
    weights: Tensor
    """[S] example weights."""
    rewards: Tensor
    """[S] NaN where the rollout could not be scored, or where the examples have none."""
    group_ids: Tensor
    """[S] int64; a group stays within one step. -1 where the examples have none."""
    strata: Tensor | None = None
    """[S] int64, which part of its group a sequence belongs to; -1 where the example has none."""
    targets: Tensor | None = None
    """[S, T] int64, the tokens; 0 beyond a sequence's end."""
    behaviour_logps: Tensor | None = None
    """[S, T] under the distribution they were sampled from."""
    old_logps: Tensor | None = None
    """[S, T] under the policy as training found it, when the mark requires 'old'."""
    reference_logps: Tensor | None = None
    """[S, T] under the reference policy, when the mark requires 'reference'."""
    old_values: Tensor | None = None
    """[S, T] what the value head, as training found it, expects before each target; when the mark requires 'values'."""
    entropy: Tensor | None = None
    """[S, T] of the policy's distribution at each target as it is before this step, without gradient; when the mark
    requires 'step_entropy'."""
    logps: Tensor | None = None
    """[S, T] of the targets under the policy as it is before this step, without gradient; when the mark requires
    'step_logps'."""
    mismatched: Tensor | None = None
    """[S] log pi - log pi_reference, summed over a completion of another prompt put behind each prompt: without
    gradient, under the policy as it is before this step; when the mark requires 'mismatched'."""
    token_scores: Tensor | None = None
    """[S, T] what a reward model makes of each token, when the mark requires 'token_scores'."""


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
    step: StepRows
    """The whole optimiser step, for statistics."""
    rows: Tensor
    """[B] int64: which of the step's sequences these are."""
    entropy: Tensor | None = None
    """[B, T] of the policy's distribution at each target, with its gradient, when the mark requires 'entropy'."""
    head_values: Tensor | None = None
    """See `values`; None unless the mark requires them."""
    held_back: bool = False
    """Whether these are the examples of `train.validation`, which are looked at and not trained on."""
    progress: float = 0.0
    """Share of this training's optimiser steps that are done: 0 in the first, just below 1 in the last."""
    history: Sequence[Mapping[str, float]] = ()
    """Metrics of the optimiser steps before this one, also those before a kill: what the objective reported, and
    loss, lr, grad_norm and tokens."""

    def of(self, values: Tensor) -> Tensor:
        """This micro-batch's part [B] of [S] or [B, T] of [S, T]."""
        chosen = values[self.rows]
        return chosen if values.ndim == 1 else chosen[:, : self.mask.shape[1]]

    @property
    def rewards(self) -> Tensor:
        """[B]; NaN where the rollout could not be scored."""
        return self.of(self.step.rewards)

    @property
    def behaviour_logps(self) -> Tensor:
        """[B, T] under the distribution they were sampled from. Raises ValueError where there are none."""
        return self.of(self.whole("behaviour_logps"))

    @property
    def old_logps(self) -> Tensor:
        """[B, T] under the policy as training found it. Raises ValueError where there are none."""
        return self.of(self.whole("old_logps"))

    @property
    def reference_logps(self) -> Tensor:
        """[B, T] under the reference policy. Raises ValueError where there are none."""
        return self.of(self.whole("reference_logps"))

    @property
    def values(self) -> Tensor:
        """[B, T] what the value head expects before each target, with its gradient. Raises ValueError likewise."""
        if self.head_values is None:
            raise ValueError('the batch has no values: the objective\'s mark asks for them with requires=("values",)')
        return self.head_values

    @property
    def old_values(self) -> Tensor:
        """[B, T] the same from the head as training found it. Raises ValueError where there are none."""
        return self.of(self.whole("old_values"))

    def whole(self, name: str) -> Tensor:
        """[S, T] the step's behaviour_logps, old_logps, reference_logps or old_values.

        Raises ValueError where there are none.
        """
        found: Tensor | None = getattr(self.step, name)
        if found is None:
            raise ValueError(f"the batch has no {name}: the objective's mark asks for them with {ASKED[name]}")
        return found


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
    reference_logps: tuple[Tensor, Tensor] | None = None
    """[B, T] chosen and [B, T'] rejected under the reference policy, when the mark requires 'reference'."""
    old_logps: tuple[Tensor, Tensor] | None = None
    """[B, T] and [B, T'] under the policy as training found it, when the mark requires 'old'."""
    strata: Tensor | None = None
    """[B] int64, of which kind a pair is; -1 where the example has none."""
    step_strata: Tensor | None = None
    """[P] the same of all pairs in the whole optimiser step."""
    behind: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """[B, T] and [B, T'] under the reference policy behind each of the further prompts that the mark names."""
    progress: float = 0.0
    """Share of this training's optimiser steps that are done."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Preference pairs as a model with a score head sees them."""

    chosen: Tensor
    """[B] score of each chosen completion; carries the gradient."""
    rejected: Tensor
    """[B] carries the gradient."""
    weights: Tensor
    """[B]"""
    margins: Tensor
    """[B] score of chosen minus score of rejected, as the builder had them; NaN where unknown."""
    rewards: Tensor
    """[B] score of chosen, as the builder had it; NaN where unknown."""
    step_pairs: float
    """Pairs in the whole optimiser step."""


@dataclass(frozen=True, slots=True)
class ScoredSequences:
    """Completions as a model with a score head sees them."""

    scores: Tensor
    """[B] carries the gradient."""
    rewards: Tensor
    """[B] NaN where the rollout could not be scored."""
    weights: Tensor
    """[B]"""
    step_sequences: float
    """Completions in the whole optimiser step."""


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Completions as a model that gives one number a token sees them."""

    scores: Tensor
    """[B, T] carries the gradient; read where each token is predicted from, 0 where the mask is 0."""
    step_rewards: Tensor
    """[S] of the whole optimiser step."""
    mask: Tensor
    """[B, T] 1.0 on tokens the loss covers."""
    rewards: Tensor
    """[B] NaN where the rollout could not be scored."""
    weights: Tensor
    """[B]"""
    step_sequences: float
    """Completions in the whole optimiser step."""

    def averaged(self) -> ScoredSequences:
        """Each completion with the mean score of its covered tokens."""
        mean = (self.scores * self.mask).sum(1) / self.mask.sum(1).clamp(min=1)
        return ScoredSequences(mean, self.rewards, self.weights, self.step_sequences)


@dataclass(frozen=True, slots=True)
class Loss:
    """A scalar to minimise and numbers to watch, each already divided so that micro-batches add up."""

    value: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
