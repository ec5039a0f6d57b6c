"""AlphaPO: SimPO with a bent reward, which decides how far likelihoods move and which of the two moves.

L = -log sigmoid(beta (r_chosen - r_rejected) - gamma), r = (1 - p^-alpha) / alpha, p = exp(log pi / |completion|);
towards alpha = 0 r is log p and the method SimPO. Its slope is p^-alpha: above 0,
the less likely a completion, the harder it is moved.

Source: Gupta et al. 2025, 2501.03884; the reward as in TRL 1.16's CPOTrainer (`alpha`). The paper tunes alpha, beta and
gamma for each model; the defaults here are SimPO's and a small alpha.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, field_validator

from strop.core.algebra.pairs import bent, logistic, means, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class AlphaPo(Config):
    """Configuration of `alpha_po`."""

    beta: PositiveFloat = 2.0
    """Scale of the difference of rewards."""
    gamma: NonNegativeFloat = 1.0
    """The scaled difference at which the pair counts as even."""
    alpha: float = 0.25
    """Bend of the reward; below 0 it bends the other way. Not 0: that is `simpo`."""

    @field_validator("alpha")
    @classmethod
    def _bent(cls, alpha: float) -> float:
        if not abs(alpha) > 0:
            raise ValueError("alpha 0 is SimPO: use `objective: simpo`")
        return alpha


@stage("objective", examples="pair")
def alpha_po(config: AlphaPo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; the metrics are of the difference before gamma is taken off."""
    rewards = means(batch).of(lambda mean: bent(mean, config.alpha))
    margin = config.beta * rewards.difference
    return pair_loss(logistic(margin - config.gamma), margin, batch)
