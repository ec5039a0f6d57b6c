"""Anchored preference optimisation, down: both completions lose likelihood, the rejected one more.

L = sigmoid(beta D_chosen) + 1 - sigmoid(beta (D_chosen - D_rejected)), D = log pi - log pi_reference of the completion.
For chosen completions worse than what the policy writes; where they are better, `apo_zero`.

Source: D'Oosterlinck et al. 2024, 2408.06266, eq. 8.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class ApoDown(Config):
    """Configuration of `apo_down`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""


@stage("objective", examples="pair", requires=("reference",))
def apo_down(config: ApoDown, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    rewards = log_ratios(batch).of(lambda log_ratio: config.beta * log_ratio)
    margin = rewards.difference
    return pair_loss(rewards.chosen.sigmoid() + 1 - margin.sigmoid(), margin, batch)
