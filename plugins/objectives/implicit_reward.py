"""Implicit process reward model: a language model whose log-ratio to a reference is the reward, learnt from outcomes.

    q_t = log pi(y_t) - log pi_ref(y_t);  L = mean BCE(sigmoid(beta sum_t q_t), outcome)

Nothing but outcomes is needed, and yet every token has a reward, beta q_t. The verifier `reward_model` gives the whole
completion's and leaves the log-probabilities of the tokens in `token_logps`.

Source: Yuan et al. 2024, 2412.01981; online in Cui et al. 2025, 2502.01456 (PRIME), beta .05.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.aggregates import per_sequence
from strop.core.algebra.pairs import soft_logistic
from strop.core.algebra.subsets import binary
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ImplicitReward(Config):
    """Scale of the reward."""

    beta: PositiveFloat = 0.05
    """Reward for a log-ratio of 1."""


@stage("objective", examples="group", needs=("reward",), requires=("reference",))
def implicit_reward(config: ImplicitReward, *, batch: SequenceBatch) -> Loss:
    """The mean over the step's completions; metrics: `accuracy`, the share on the right side of 1/2.

    Raises ValueError where a reward is neither 0 nor 1.
    """
    outcome = binary(batch.rewards)
    reward = config.beta * ((batch.logps - batch.reference_logps) * batch.mask).sum(1)
    right = ((reward > 0) == (outcome > 0.5)).sum()
    value = per_sequence(soft_logistic(reward, outcome)[:, None], batch)
    return Loss(value, {"accuracy": float(right) / batch.step_sequences})
