"""Self-play preference optimisation with certain wins: each log-ratio is regressed on +-1 / (2 beta).

L = (D_chosen - 1 / (2 beta))^2 + (D_rejected + 1 / (2 beta))^2, D = log pi - log pi_reference of the completion. The
reference is the policy that wrote the pairs (`reference: init` where training starts from it): then it is one step of a
game played against oneself.

Source: Wu et al. 2024, 2405.00675, eq. 4.7 with win probabilities 1 and 0; eta there is 1 / beta here.
Left out: win probabilities estimated by a preference model.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, pair_loss, square
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class SppoHard(Config):
    """Configuration of `sppo_hard`."""

    beta: PositiveFloat = 0.001
    """1 / beta is the difference of log-ratios asked for, in nats."""


@stage("objective", examples="pair", requires=("reference",))
def sppo_hard(config: SppoHard, *, batch: PairBatch) -> Loss:
    """Mean over pairs; the metric `margin` is scaled by beta."""
    ratios, target = log_ratios(batch), 1 / (2 * config.beta)
    values = square(ratios.chosen, target) + square(ratios.rejected, -target)
    return pair_loss(values, config.beta * ratios.difference, batch)
