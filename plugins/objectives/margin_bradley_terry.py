"""Bradley-Terry with a margin: the more the chosen completion is preferred, the further apart the scores must be.

    L = mean[-log sigmoid(s_chosen - s_rejected - scale m)]

m is the pair's margin: a grade of the preference, or the mean over an ensemble of the members' own differences (see
`best_worst`'s `margin_scorer`), which is negative where they take the pair for mislabelled. A pair
without one counts as with 0.

Source: Touvron et al. 2023, 2307.09288, eq. 2 (graded margins); Wang et al. 2024, 2401.06080 (adaptive margins
from an ensemble's preference strength); TRL's RewardTrainer where examples have a `margin`.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.algebra.pairs import logistic
from strop.core.algebra.scored import scored_pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, ScoredPairs


class MarginBradleyTerry(Config):
    """How much the margin counts."""

    scale: NonNegativeFloat = 1.0
    """Multiplies every margin; 0 is plain Bradley-Terry."""


@stage("objective", examples="pair", head="score")
def margin_bradley_terry(config: MarginBradleyTerry, *, batch: ScoredPairs) -> Loss:
    """The mean over the step's pairs."""
    difference = batch.chosen - batch.rejected
    return scored_pair_loss(logistic(difference - config.scale * batch.margins.nan_to_num(0.0)), batch)
