"""Efficient exact optimisation on pairs: the reverse KL of DPO's forward one, so that the policy seeks a mode.

L = KL(q || p), q = (sigmoid(m), sigmoid(-m)), p = (1 - e, e), m = beta (D_chosen - D_rejected); least at
m = log((1 - e) / e), where DPO has no least value.

Source: Ji et al. 2024, 2402.00856, eq. 16.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveFloat

from strop.core.algebra.pairs import log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class ExoPair(Config):
    """Configuration of `exo_pair`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """The rejected completion's share of the target; 0 would make the loss infinite."""


@stage("objective", examples="pair", requires=("reference",))
def exo_pair(config: ExoPair, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.beta * log_ratios(batch).difference
    won, lost = math.log1p(-config.smoothing), math.log(config.smoothing)
    values = margin.sigmoid() * (-logistic(margin) - won) + (-margin).sigmoid() * (-logistic(-margin) - lost)
    return pair_loss(values, margin, batch)
