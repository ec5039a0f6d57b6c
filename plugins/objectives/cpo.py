"""Contrastive preference optimisation: DPO with a uniform reference, and an anchor on the chosen completions.

L = -log sigmoid(beta (log pi(chosen) - log pi(rejected))) + nll NLL_chosen; without the anchor both may fall.

Source: Xu et al. 2024, 2401.08417.
Changed: the NLL is the mean over the chosen tokens of the whole optimiser step, as in TRL 1.16.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import anchored, logistic, pair_loss, sums
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Cpo(Config):
    """Configuration of `cpo`."""

    beta: PositiveFloat = 0.1
    """Scale of the difference."""
    nll: NonNegativeFloat = 1.0
    """Coefficient of the chosen completions' token-mean NLL."""


@stage("objective", examples="pair")
def cpo(config: Cpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs, plus the anchor; metrics as `dpo`."""
    margin = config.beta * sums(batch).difference
    return anchored(pair_loss(logistic(margin), margin, batch), config.nll, batch)
