"""Simple preference optimisation: no reference; the mean log-probability a token, and a margin to win by.

L = -log sigmoid(beta (log pi(chosen) / |chosen| - log pi(rejected) / |rejected|) - gamma).

Source: Meng et al. 2024, 2405.14734, eq. 6. `gamma` is the margin inside the sigmoid, as in the paper; TRL divides its
`simpo_gamma` by beta and multiplies it back, so it is the same number.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import logistic, means, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Simpo(Config):
    """Configuration of `simpo`."""

    beta: PositiveFloat = 2.0
    """Scale of the difference a token."""
    gamma: NonNegativeFloat = 1.0
    """The scaled difference at which the pair counts as even; the paper takes 0.3 to 1.6."""


@stage("objective", examples="pair")
def simpo(config: Simpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; the metrics are of the difference before gamma is taken off."""
    margin = config.beta * means(batch).difference
    return pair_loss(logistic(margin - config.gamma), margin, batch)
