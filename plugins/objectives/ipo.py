"""Identity preference optimisation: the difference of log-ratios is to be 1 / (2 beta), neither less nor more.

L = (D_chosen / |chosen| - D_rejected / |rejected| - 1 / (2 beta))^2, D = log pi - log pi_reference of the completion.
Where DPO pushes pairs that are always won apart without end, the square pulls them back.

Source: Azar et al. 2023, 2310.12036, eq. 17 (tau there is beta here).
Changed: divided by the lengths, as TRL 1.16 has it on the authors' word; the paper's equation has sums.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import mean_log_ratios, pair_loss, square
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Ipo(Config):
    """Configuration of `ipo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""


@stage("objective", examples="pair", requires=("reference",))
def ipo(config: Ipo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; the metric `margin` is the difference of log-ratios a token, unscaled."""
    margin = mean_log_ratios(batch).difference
    return pair_loss(square(margin, 1 / (2 * config.beta)), margin, batch)
