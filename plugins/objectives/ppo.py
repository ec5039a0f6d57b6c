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

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from strop.core.algebra.advantages import plain
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.divergences import k1
from strop.core.algebra.spread import at_last, gae, whitened
from strop.core.algebra.values import clipped_squares, explained
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Ppo(Clip):
    """Configuration of `ppo`."""

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How far advantages trust what came rather than what the critic says: 1 = the return less the value."""
    beta: NonNegativeFloat = 0.05
    """What a token's log-ratio to the reference costs; nothing where the reference is where training starts."""
    value: PositiveFloat = 5.0
    """Coefficient of the critic's loss."""
    value_clip: PositiveFloat | None = 0.2
    """A value's gradient ends this far from where training found it, on the way to its return; null = nowhere, so that
    a critic in few long rounds goes all the way to returns it did not foresee."""


@stage(
    "objective",
    examples="group",
    needs=("logps",),
    requires=("values",),
    requires_if={"reference": "beta", "old": "beta"},
)
def ppo(config: Ppo, *, batch: SequenceBatch) -> Loss:
    """Both losses averaged within completions and then over them; one that could not be scored has no part.

    Metrics: `value_loss` before its coefficient, `explained_variance` of the returns by the values in training.
    """
    step = batch.step
    mask = step.mask * ~step.rewards.isnan()[:, None]
    rewards = at_last(plain(step.rewards), mask)
    if config.beta:
        rewards = rewards - config.beta * k1(batch.whole("old_logps"), batch.whole("reference_logps")) * mask
    advantages, returns = gae(rewards, batch.whole("old_values"), mask, config.gamma, config.lam)
    actor = sequence_mean(surrogate(config, batch.of(whitened(advantages, mask)), batch), batch)
    part, target = batch.of(mask), batch.of(returns)
    critic = sequence_mean(clipped_squares(batch.values, batch.old_values, target, config.value_clip) * part, batch)
    share = explained((target - batch.values).detach(), part, returns, mask)
    metrics = {"value_loss": float(critic.detach()), "explained_variance": float(share)}
    return Loss(actor + config.value * critic, metrics)
