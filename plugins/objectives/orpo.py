"""Odds-ratio preference optimisation: supervised training on the chosen completion that also tells it from the other.

L = NLL_chosen - beta log sigmoid(log odds_chosen - log odds_rejected), odds = p / (1 - p),
p = exp(log pi / |completion|). It needs neither a reference nor SFT before it.

Source: Hong et al. 2024, 2403.07691, eq. 6 and 7.
Changed: the NLL is the mean over the chosen tokens of the whole optimiser step; TRL 1.16 takes in the prompt's. A
mean log-probability is held at -1e-6 or below: a certain completion has no odds.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import anchored, log_odds, logistic, means, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Orpo(Config):
    """Configuration of `orpo`."""

    beta: PositiveFloat = 0.1
    """Coefficient of the odds ratio's term (lambda in the paper)."""


@stage("objective", examples="pair")
def orpo(config: Orpo, *, batch: PairBatch) -> Loss:
    """NLL plus the mean over pairs; `margin` is the mean of the log odds ratio."""
    margin = means(batch).of(log_odds).difference
    return anchored(pair_loss(config.beta * logistic(margin), margin, batch), 1.0, batch)
