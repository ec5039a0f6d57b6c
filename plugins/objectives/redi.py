"""Reinforcement distillation: raise a teacher's right completion and lower its wrong one, the wrong one less.

L = mean over pairs of -S_chosen / |chosen| + alpha S_rejected / |rejected|, S = sum of log-probabilities. No reference
policy and no saturation: alpha below 1 is all that keeps the likelihood of both from falling. The paper first trains
five epochs of SFT on the chosen side.

Source: Xu et al. 2025, 2505.24850 (Tim-Siu/reinforcement-distillation).
Changed: each pair's term is multiplied by its example weight.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Redi(Config):
    """Configuration of `redi`."""

    alpha: NonNegativeFloat = 0.8
    """Weight of the rejected side; 0 = SFT on the chosen one, 1 = both alike, which collapses."""


@stage("objective", examples="pair")
def redi(config: Redi, *, batch: PairBatch) -> Loss:
    """Mean over pairs of the asymmetric difference; metric `margin`: that of the mean log-probabilities."""
    chosen = (batch.chosen_logps * batch.chosen_mask).sum(1) / batch.chosen_mask.sum(1).clamp(min=1)
    rejected = (batch.rejected_logps * batch.rejected_mask).sum(1) / batch.rejected_mask.sum(1).clamp(min=1)
    value = (batch.weights * (config.alpha * rejected - chosen)).sum() / batch.step_pairs
    return Loss(value, {"margin": float((chosen - rejected).detach().sum()) / batch.step_pairs})
