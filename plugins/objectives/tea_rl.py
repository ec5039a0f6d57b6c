"""Entropy kept up where the policy gradient would take it: a bonus on each token by how much it moves the entropy.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) - coefficient c H,
c = clip(scale softmax(cov), 0, most) along the completion, cov = (A - mean A) (log pi - mean log pi): where a likely
token is reinforced, or an unlikely one punished, entropy falls the most. c has no gradient.

Source: Light-IF, Wang et al. 2025, 2508.03178 (TEA-RL), and its code (Qihoo360/Light-IF, `core_algos.py`), which has
the function but does not call it in its default loss. A is GRPO's.
Left out: the mean of log pi, which the softmax along a completion cancels.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.entropies import by_covariance, entropy_of
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class TeaRl(Clip):
    """Configuration of `tea_rl`."""

    coefficient: NonNegativeFloat = 1.0
    """Of the whole bonus."""
    scale: PositiveFloat = 10.0
    """What the softmax along a completion is multiplied with."""
    most: PositiveFloat = 5.0
    """Largest weight of a token."""


@stage("objective", examples="group", needs=("logps",), requires=("entropy",))
def tea_rl(config: TeaRl, *, batch: SequenceBatch) -> Loss:
    """Metric `bonus`: the token mean of c H."""
    advantage = standardised(batch.step.rewards, batch.step.group_ids)
    weights = by_covariance(advantage, batch, config.scale, config.most)
    bonus = token_mean(weights * entropy_of(batch), batch)
    value = token_mean(surrogate(config, batch.of(advantage)[:, None], batch), batch)
    return Loss(value - config.coefficient * bonus, {"bonus": float(bonus.detach())})
