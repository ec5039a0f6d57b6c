"""GRPO with a higher upper clip, a cap on bad tokens' loss, and every token of the step counting alike.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)), at most -cap A where A < 0.

Source: Yu et al. 2025, 2503.14476 (DAPO), and the settings of its recipe in verl.
Left out: the reward for overlong completions (a verifier's matter) and refilling groups of one reward
(`build: {use: grouped, contrast: true}` leaves them out).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Dapo(Config):
    """Configuration of `dapo`."""

    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.28
    """And above 1 + high, where it is positive: unlikely tokens may grow more than they may shrink."""
    cap: Annotated[float | None, Field(gt=1)] = 10.0
    """Where the advantage is negative the loss of a token is at most cap times its size; null = no cap."""


@stage("objective", examples="group", needs=("logps",))
def dapo(config: Dapo, *, batch: SequenceBatch) -> Loss:
    """Token-mean of the clipped surrogate."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    return Loss(token_mean(clipped(advantage, ratio, config.low, config.high, config.cap), batch))
