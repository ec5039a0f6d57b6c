"""Preference pairs: a score for each side, and a link from scores to the loss of each pair.

Most methods are one score and one link: DPO is `logistic` of beta times the difference of `log_ratios`, SimPO the same
of `means`, IPO `square` of `mean_log_ratios`.

Source: the papers stand at each; the forms and the names of the divergences as in TRL 1.16's DPOTrainer, CPOTrainer
and ORPOTrainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch
from strop.core.trainer.objective import Loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from strop.core.trainer.objective import PairBatch

LARGEST = 80.0
"""Exponents are held below this, so that float32 does not overflow; above it the gradient is 0."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One number for each side of each pair."""

    chosen: Tensor
    """[B]"""
    rejected: Tensor
    """[B]"""

    @property
    def difference(self) -> Tensor:
        """[B] chosen minus rejected."""
        return self.chosen - self.rejected

    def of(self, function: Callable[[Tensor], Tensor]) -> Scores:
        """Both sides put through a function."""
        return Scores(function(self.chosen), function(self.rejected))


def lengths(batch: PairBatch) -> Scores:
    """Covered tokens, at least 1."""
    return Scores(batch.chosen_mask.sum(1).clamp(min=1), batch.rejected_mask.sum(1).clamp(min=1))


def sums(batch: PairBatch) -> Scores:
    """log pi of the whole completion."""
    return Scores(
        (batch.chosen_logps * batch.chosen_mask).sum(1),
        (batch.rejected_logps * batch.rejected_mask).sum(1),
    )


def means(batch: PairBatch) -> Scores:
    """log pi a token."""
    return _per_token(sums(batch), batch)


def log_ratios(batch: PairBatch, to: str = "reference") -> Scores:
    """log pi - log pi_reference of the whole completion; `to` 'old', log pi - log pi_old.

    Raises ValueError where the batch has none of that policy.
    """
    known = batch.reference_logps if to == "reference" else batch.old_logps
    if known is None:
        raise ValueError(f"the batch has no {to}_logps: the objective's mark asks for them with requires=({to!r},)")
    chosen, rejected = known
    return Scores(
        ((batch.chosen_logps - chosen) * batch.chosen_mask).sum(1),
        ((batch.rejected_logps - rejected) * batch.rejected_mask).sum(1),
    )


def mean_log_ratios(batch: PairBatch) -> Scores:
    """log pi - log pi_reference a token. Raises ValueError as `log_ratios`."""
    return _per_token(log_ratios(batch), batch)


def _per_token(scores: Scores, batch: PairBatch) -> Scores:
    n = lengths(batch)
    return Scores(scores.chosen / n.chosen, scores.rejected / n.rejected)


def forward_kl(log_ratio: Tensor) -> Tensor:
    """f'(t) = 1 - 1/t at t = pi / pi_reference (Wang et al. 2023, 2309.16240)."""
    return 1 - (-log_ratio).clamp(max=LARGEST).exp()


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """f'(t) = log(2t / (t + 1)) (Wang et al. 2023, 2309.16240)."""
    return math.log(2) + torch.nn.functional.logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, alpha: float) -> Tensor:
    """f'(t) = (t^(alpha - 1) - 1) / (alpha - 1); towards alpha = 1 it is log t (Wang et al. 2023, 2309.16240)."""
    return torch.expm1(((alpha - 1) * log_ratio).clamp(max=LARGEST)) / (alpha - 1)


def log_odds(mean_logps: Tensor, least: float = 1e-6) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean log-probability a token), held at -`least` or below: p = 1 has no odds."""
    held = mean_logps.clamp(max=-least)
    return held - torch.log(-torch.expm1(held))


def logistic(margin: Tensor) -> Tensor:
    """-log sigmoid(margin): the pair is won with the probability sigmoid(margin) (Bradley and Terry 1952)."""
    return -torch.nn.functional.logsigmoid(margin)


def soft_logistic(margin: Tensor, won: Tensor | float) -> Tensor:
    """Cross-entropy of sigmoid(margin) where the pair is won with the probability `won`."""
    return won * logistic(margin) + (1 - won) * logistic(-margin)


def unbiased_logistic(margin: Tensor, flipped: float) -> Tensor:
    """What has `logistic` as its mean over labels of which the share `flipped` (below 1/2) is the wrong way round."""
    return ((1 - flipped) * logistic(margin) - flipped * logistic(-margin)) / (1 - 2 * flipped)


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - margin): no gradient beyond a margin of 1."""
    return (1 - margin).clamp(min=0)


def square(score: Tensor, target: Tensor | float) -> Tensor:
    """(score - target)^2: pulls back a score beyond its target."""
    return (score - target) ** 2


def pair_loss(values: Tensor, margin: Tensor, batch: PairBatch) -> Loss:
    """Mean over the pairs of the step of `values` [B] times their weights.

    Metrics, of `margin` [B]: `accuracy` (share above 0) and `margin` (its mean).
    """
    return Loss(
        (batch.weights * values).sum() / batch.step_pairs,
        {
            "accuracy": float((margin > 0).sum()) / batch.step_pairs,
            "margin": float(margin.detach().sum()) / batch.step_pairs,
        },
    )


def mean_of_kind(values: Tensor, kind: int, batch: PairBatch) -> Tensor:
    """Mean over the step's pairs of that stratum of `values` [B] times their weights; 0 where the step has none.

    Raises ValueError where the examples have no strata.
    """
    if batch.strata is None or batch.step_strata is None or bool((batch.strata < 0).any()):
        raise ValueError('the pairs have no strata: the objective\'s mark asks for them with needs=("stratum",)')
    here = batch.strata == kind
    count = (batch.step_strata == kind).sum().clamp(min=1)
    return (torch.where(here, values, 0.0) * batch.weights).sum() / count


def anchored(loss: Loss, coefficient: float, batch: PairBatch) -> Loss:
    """The loss plus `coefficient` times the NLL of the chosen completions, averaged over the tokens of the step."""
    nll = -(batch.weights * sums(batch).chosen).sum() / batch.step_chosen_tokens
    return Loss(loss.value + coefficient * nll, loss.metrics)


def bent(mean_logps: Tensor, alpha: float) -> Tensor:
    """(1 - p^-alpha) / alpha of p = exp(mean log-probability a token); towards alpha = 0 log p (2501.03884)."""
    return -torch.expm1((-alpha * mean_logps).clamp(max=LARGEST)) / alpha


def contrasted(better: Tensor, worse: Tensor) -> Tensor:
    """sigmoid(log P behind a better prompt - log P behind a worse one) - 1/2 of each token, from -1/2 to 1/2.

    What asking for the better makes likelier is worth something by itself (T-REG, 2412.02685).
    """
    return (better - worse).sigmoid() - 0.5


def beyond_shared(batch: PairBatch, weight: float) -> PairBatch:
    """The batch with `weight` in the masks where a side has more covered tokens than the other (LD-DPO, 2409.06411)."""
    counts = lengths(batch)
    shared = torch.minimum(counts.chosen, counts.rejected)[:, None]

    def masked(mask: Tensor) -> Tensor:
        return torch.where(mask.cumsum(1) > shared, weight * mask, mask)

    return replace(batch, chosen_mask=masked(batch.chosen_mask), rejected_mask=masked(batch.rejected_mask))
