"""Reward model by regression: the score of a completion is pulled towards the reward it was given.

    L = mean[(s - r)^2]

Unlike a preference it keeps the scale of the rewards: with verdicts as rewards the score is the chance to pass.

Source: Wang et al. 2024, 2406.08673 (HelpSteer2), there one output for each of five attributes.
"""

from __future__ import annotations

from strop.core.algebra.pairs import square
from strop.core.algebra.scored import scored_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, ScoredSequences


class RewardRegression(Config):
    """Nothing to set."""


@stage("objective", examples="group", needs=("reward",), head="score")
def reward_regression(config: RewardRegression, *, batch: ScoredSequences) -> Loss:
    """The mean over the step's completions."""
    return scored_loss(square(batch.scores, batch.rewards), batch)
