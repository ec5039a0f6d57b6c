"""Bradley-Terry in which a pair counts by its margin, as if a clear preference had been stated several times.

    L = mean[-m log sigmoid(s_chosen - s_rejected)]

Source: Wang et al. 2024, 2410.01257 (HelpSteer2-Preference), where m is 1 to 3. Changed: a margin below 0,
an ensemble's word against the pair, counts as 0, and a pair without one as with 1.
"""

from __future__ import annotations

from strop.core.algebra.pairs import logistic
from strop.core.algebra.scored import scored_pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, ScoredPairs


class ScaledBradleyTerry(Config):
    """Nothing to set: the margins are the builder's."""


@stage("objective", examples="pair", head="score")
def scaled_bradley_terry(config: ScaledBradleyTerry, *, batch: ScoredPairs) -> Loss:
    """The mean over the step's pairs."""
    return scored_pair_loss(batch.margins.nan_to_num(1.0).clamp(min=0) * logistic(batch.chosen - batch.rejected), batch)
