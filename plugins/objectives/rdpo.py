"""Length-regularised DPO: a pair won by the longer completion teaches less, so that length is not what is learnt.

L = -log sigmoid(beta (D_chosen - D_rejected) + alpha (|chosen| - |rejected|)), D = log pi - log pi_reference of the
completion: what DPO becomes when the reward is to be maximised less alpha a token.

Source: Park et al. 2024, 2403.19159 (R-DPO). Not the rDPO for flipped labels, which is `robust_dpo`. The paper tunes
alpha; the default here is not its word.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import lengths, log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Rdpo(Config):
    """Configuration of `rdpo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    alpha: NonNegativeFloat = 0.01
    """What a token costs."""


@stage("objective", examples="pair", requires=("reference",))
def rdpo(config: Rdpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`, without the lengths."""
    margin = config.beta * log_ratios(batch).difference
    return pair_loss(logistic(margin + config.alpha * lengths(batch).difference), margin, batch)
