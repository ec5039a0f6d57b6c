"""DPO on labels of which a known share is flipped: the mean over the flips is the loss on the true labels.

L = [-(1 - e) log sigmoid(m) + e log sigmoid(-m)] / (1 - 2e), m = beta (D_chosen - D_rejected), e the flip rate. Unlike
label smoothing, which is biased towards m = 0, it may fall below 0.

Source: Chowdhury et al. 2024, 2403.00409 (rDPO). Not the length-regularised R-DPO, which is `rdpo`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from strop.core.algebra.pairs import log_ratios, pair_loss, unbiased_logistic
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class RobustDpo(Config):
    """Configuration of `robust_dpo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    flipped: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of pairs labelled the wrong way round."""


@stage("objective", examples="pair", requires=("reference",))
def robust_dpo(config: RobustDpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.beta * log_ratios(batch).difference
    return pair_loss(unbiased_logistic(margin, config.flipped), margin, batch)
