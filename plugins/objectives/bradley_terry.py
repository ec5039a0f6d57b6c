"""Reward model by Bradley and Terry: the chosen completion wins with the probability sigmoid(s_chosen - s_rejected).

    L = mean[-log sigmoid(s_chosen - s_rejected) + center (s_chosen + s_rejected)^2]

Source: Bradley and Terry 1952; as a reward model's loss Ouyang et al. 2022, 2203.02155, eq. 1, there over all pairs of
a prompt; the second term Eisenstein et al. 2023, 2312.09244, eq. 2, as in TRL's RewardTrainer.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.algebra.pairs import logistic, square
from strop.core.algebra.scored import scored_pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, ScoredPairs


class BradleyTerry(Config):
    """How scores are tied down."""

    center: NonNegativeFloat = 0.0
    """Pulls the mean score of each pair towards 0 (0.01 in the paper): preferences say nothing of the level."""


@stage("objective", examples="pair", head="score")
def bradley_terry(config: BradleyTerry, *, batch: ScoredPairs) -> Loss:
    """The mean over the step's pairs."""
    level = square(batch.chosen + batch.rejected, 0.0)
    return scored_pair_loss(logistic(batch.chosen - batch.rejected) + config.center * level, batch)
