"""Preference and regression in one reward model: the order of a pair by Bradley-Terry, its level by the rewards.

    L = mean[-w log sigmoid(s_c - s_r) + regression/2 ((s_c - r_c)^2 + (s_r - r_r)^2)]  (c: chosen, r: rejected)

w is the pair's margin r_c - r_r, at least 0, where `scaled`, else 1.

Source: Wang et al. 2024, 2410.01257 (HelpSteer2-Preference). Changed: the paper trains the two losses one after the
other, regression first; here they are one sum.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.algebra.pairs import logistic, square
from strop.core.algebra.scored import scored_pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, ScoredPairs


class CombinedReward(Config):
    """The mix."""

    regression: NonNegativeFloat = 1.0
    """Weight of the regression; 0 leaves the preference alone."""
    scaled: bool = True
    """Whether a pair's preference counts by its margin."""


@stage("objective", examples="pair", needs=("margin", "reward"), head="score")
def combined_reward(config: CombinedReward, *, batch: ScoredPairs) -> Loss:
    """The mean over the step's pairs."""
    preference = logistic(batch.chosen - batch.rejected)
    if config.scaled:
        preference = batch.margins.clamp(min=0) * preference
    off = square(batch.chosen, batch.rewards) + square(batch.rejected, batch.rewards - batch.margins)
    return scored_pair_loss(preference + config.regression / 2 * off, batch)
