"""Regressing the relative future: the difference of log-ratios is to equal eta times the difference of returns.

L = (D_1 - D_2 - eta (R_1 - R_2))^2, D = log pi - log pi_old of one turn, R what its conversation earned from there
on. Two conversations that share the history up to a turn make a pair: the prompt is the history, the sides are the
turns, the `margin` column is R_1 - R_2. It needs returns, no preference: which side is called chosen does not matter.

Source: Gao et al. 2024, 2410.04612, in the form of its code (ZhaolinGao/REFUEL), whose command line has eta 1000
and whose class has 1.
Left out: the code divides logits by the sampling temperature.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, pair_loss, square
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Refuel(Config):
    """Configuration of `refuel`."""

    eta: PositiveFloat = 1.0
    """Nats that a unit of return is worth; larger moves further from the policy training found."""


@stage("objective", examples="pair", needs=("margin",), requires=("old",))
def refuel(config: Refuel, *, batch: PairBatch) -> Loss:
    """Mean over pairs; the metric `margin` is the difference of log-ratios, unscaled."""
    margin = log_ratios(batch, "old").difference
    return pair_loss(square(margin, config.eta * batch.margins), margin, batch)
