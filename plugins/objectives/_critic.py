"""Actor and critic that share a policy's layers: what the objectives with values have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat

from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.algebra.spread import at_last, gae, whitened
from strop.core.algebra.values import clipped_squares, explained
from strop.core.plugin import Config
from strop.core.trainer.objective import Loss, SequenceBatch

if TYPE_CHECKING:
    from torch import Tensor


class Critic(Config):
    """Settings of every objective with values."""

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How far advantages trust what came rather than what the critic says: 1 = the return less the value."""
    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """And above 1 + high, where it is positive."""
    value: PositiveFloat = 5.0
    """Coefficient of the critic's loss."""
    value_clip: PositiveFloat | None = 0.2
    """A value's gradient ends this far from where training found it, on the way to its return; null = nowhere, so that
    a critic in few long rounds goes all the way to returns it did not foresee."""


def actor_and_critic(
    config: Critic, batch: SequenceBatch, rewards: Tensor, scored: Tensor, costs: Tensor | None = None
) -> Loss:
    """Clipped surrogate and critic's loss, each averaged within completions and then over them.

    `rewards` [S] stand at the last tokens; `costs` [S, T] are taken off token by token. A completion that is not
    `scored` [S] has no part. Metrics: `value_loss` before its coefficient, and `explained_variance` of the returns by
    the values in training.
    """
    step = batch.step
    mask = step.mask * scored[:, None]
    earned = at_last(rewards, mask)
    if costs is not None:
        earned = earned - costs * mask
    advantages, returns = gae(earned, batch.whole("old_values"), mask, config.gamma, config.lam)
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    actor = clipped(batch.of(whitened(advantages, mask)), ratio, config.low, config.high)
    part, target = batch.of(mask), batch.of(returns)
    critic = sequence_mean(clipped_squares(batch.values, batch.old_values, target, config.value_clip) * part, batch)
    share = explained((target - batch.values).detach(), part, returns, mask)
    return Loss(
        sequence_mean(actor, batch) + config.value * critic,
        {"value_loss": float(critic.detach()), "explained_variance": float(share)},
    )
