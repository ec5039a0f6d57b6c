"""Discovered preference optimisation: a blend of the logistic and the exponential loss that a language model found.

L = (1 - w) (-log sigmoid(m)) + w exp(-m), w = sigmoid(m / tau), m = beta (D_chosen - D_rejected),
D = log pi - log pi_reference of the completion. It is not convex: with tau 0.05 it rises from m = -0.12 to m = 0.07,
and pairs that begin below come to rest at -0.12.

Source: Lu et al. 2024, 2406.08414, eq. 5 (log-ratio modulated loss).
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import LARGEST, log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Discopop(Config):
    """Configuration of `discopop`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    tau: PositiveFloat = 0.05
    """How abruptly the exponential takes over from the logistic."""


@stage("objective", examples="pair", requires=("reference",))
def discopop(config: Discopop, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.beta * log_ratios(batch).difference
    exponential = (margin / config.tau).sigmoid()
    values = (1 - exponential) * logistic(margin) + exponential * (-margin).clamp(max=LARGEST).exp()
    return pair_loss(values, margin, batch)
