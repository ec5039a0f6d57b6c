"""Proximal policy optimisation with a critic: a value head on the policy says what is still to come at each token.

    r_t = reward at the last token - beta (log pi_old(y_t) - log pi_reference(y_t))
    A_t = sum_k (gamma lam)^k (r_t+k + gamma V_t+k+1 - V_t+k), whitened over the step's tokens;  R_t = A_t + V_t before
    L = mean over completions of the mean over tokens of
        -min(A rho, A clip(rho, 1 - low, 1 + high))
        + value / 2 max((V' - R)^2, (clip(V', V - value_clip, V + value_clip) - R)^2)

V are the values as training finds them, read once; V' those of the head in training, which shares the policy's layers.

Source: Schulman et al. 2017, 1707.06347; on reasoning Luong et al. 2024, 2401.08967 (ReFT), whose settings these are,
and whose code shares the layers, averages within completions first and clips values.
Changed: the ratio's denominator is the distribution that was sampled from, tempered and truncated, as it is stored.
Left out: the reward of .1 for a wrong number (a verifier's matter).
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.algebra.advantages import plain
from strop.core.algebra.divergences import k1
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch
from strop.plugins.objectives._critic import Critic, actor_and_critic


class Ppo(Critic):
    """Configuration of `ppo`."""

    beta: NonNegativeFloat = 0.05
    """What a token's log-ratio to the reference costs; nothing where the reference is where training starts."""


@stage(
    "objective",
    examples="group",
    needs=("logps",),
    requires=("values",),
    requires_if={"reference": "beta", "old": "beta"},
)
def ppo(config: Ppo, *, batch: SequenceBatch) -> Loss:
    """Metrics: `value_loss`, `explained_variance`. A completion that could not be scored has no part."""
    costs = None
    if config.beta:
        costs = config.beta * k1(batch.whole("old_logps"), batch.whole("reference_logps"))
    return actor_and_critic(config, batch, plain(batch.step.rewards), ~batch.step.rewards.isnan(), costs)
