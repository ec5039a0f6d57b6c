"""Token reward model: one logit a token, whose mean over the completion says whether it is right.

    L = mean of w BCE(sigma(mean z), outcome),  z_t read from the hidden state that token t is predicted from

Only the mean is told anything, and so each token's logit comes to say how far things stand well there. The weights w
make right and wrong completions count alike in each step: else a policy that seldom is right would get a model that
finds every token more likely wrong, and `oreal` no weight for the right ones.

Source: Lyu et al. 2025, 2502.06781 (OREAL), and its code (InternLM/OREAL).
Changed: the weights; there one right and one wrong completion of each prompt are learnt from.
"""

from __future__ import annotations

from strop.core.algebra.pairs import soft_logistic
from strop.core.algebra.scored import scored_loss
from strop.core.algebra.subsets import binary, evened
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, ScoredTokens


class TokenOutcome(Config):
    """What counts how much."""

    even: bool = True
    """Right and wrong completions count alike; false = each as often as it is there."""


@stage("objective", examples="group", needs=("reward",), head="token")
def token_outcome(config: TokenOutcome, *, batch: ScoredTokens) -> Loss:
    """The mean over the step's completions; metrics: `accuracy`, the share on the right side of 1/2, and `level`.

    Raises ValueError where a reward is neither 0 nor 1.
    """
    whole = batch.averaged()
    outcome = binary(whole.rewards)
    weights = evened(outcome, batch.step_rewards) if config.even else 1.0
    loss = scored_loss(weights * soft_logistic(whole.scores, outcome), whole)
    right = ((whole.scores > 0) == (outcome > 0.5)).sum()
    return Loss(loss.value, loss.metrics | {"accuracy": float(right) / batch.step_sequences})
