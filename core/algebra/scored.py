"""From a loss a pair or a completion to the micro-batch's share of the step's, for models with a score head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.trainer.objective import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import ScoredPairs, ScoredSequences


def scored_pair_loss(values: Tensor, batch: ScoredPairs) -> Loss:
    """Mean over the pairs of the step of `values` [B] times their weights.

    Metrics: `accuracy` (share whose chosen completion has the higher score), `difference` and `level` of the scores.
    """
    n, chosen, rejected = batch.step_pairs, batch.chosen.detach(), batch.rejected.detach()
    return Loss(
        (batch.weights * values).sum() / n,
        {
            "accuracy": float((chosen > rejected).sum()) / n,
            "difference": float((chosen - rejected).sum()) / n,
            "level": float((chosen + rejected).sum()) / 2 / n,
        },
    )


def scored_loss(values: Tensor, batch: ScoredSequences) -> Loss:
    """Mean over the completions of the step of `values` [B] times their weights; metric: `level` of the scores."""
    n = batch.step_sequences
    return Loss((batch.weights * values).sum() / n, {"level": float(batch.scores.detach().sum()) / n})
