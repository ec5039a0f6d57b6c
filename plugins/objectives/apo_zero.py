"""Anchored preference optimisation, zero: chosen completions gain likelihood and rejected ones lose it.

L = 1 - sigmoid(beta D_chosen) + sigmoid(beta D_rejected), D = log pi - log pi_reference of the completion. For chosen
completions better than what the policy writes; where they are worse, `apo_down`.

Source: D'Oosterlinck et al. 2024, 2408.06266, eq. 7.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class ApoZero(Config):
    """Configuration of `apo_zero`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""


@stage("objective", examples="pair", requires=("reference",))
def apo_zero(config: ApoZero, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    rewards = log_ratios(batch).of(lambda log_ratio: config.beta * log_ratio)
    return pair_loss(1 - rewards.chosen.sigmoid() + rewards.rejected.sigmoid(), rewards.difference, batch)
