"""DPO a token: the log-ratios are divided by the lengths, so that long completions do not weigh more.

L = -log sigmoid(beta (D_chosen / |chosen| - D_rejected / |rejected|)), D = log pi - log pi_reference of the completion.

Source: Lambert et al. 2024, 2411.15124 (Tulu 3), with its beta; TRL 1.16's `sigmoid_norm`.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import logistic, mean_log_ratios, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class DpoNorm(Config):
    """Configuration of `dpo_norm`."""

    beta: PositiveFloat = 5.0
    """How strongly the policy is held to the reference; larger = closer."""


@stage("objective", examples="pair", requires=("reference",))
def dpo_norm(config: DpoNorm, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.beta * mean_log_ratios(batch).difference
    return pair_loss(logistic(margin), margin, batch)
