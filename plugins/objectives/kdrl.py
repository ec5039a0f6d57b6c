"""Distillation and reinforcement on the policy's own samples: GRPO with a pull to a teacher.

L = mean over tokens of -min(A rho, A clip(rho, 1 - e, 1 + e)) + kd k2(pi, teacher), A standardised in the group. k2 in
the loss has the gradient of KL(pi || teacher) on samples of pi. The teacher is the reference policy.

Source: Xu et al. 2025, 2506.02208. The paper lets `kd` fall from 5e-3 to 1e-3 in the course of one long training; in
rounds of short ones, lower it from round to round.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.divergences import k2
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.algebra.schedules import exponential, linear
from strop.core.plugin import LATER, Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Kdrl(Config):
    """Configuration of `kdrl`."""

    kd: NonNegativeFloat = 5e-3
    """Coefficient of the pull to the teacher, at first where `kd_last` is set."""
    kd_last: Annotated[PositiveFloat | None, LATER] = None
    """The coefficient at the end of the training; null = it stays."""
    fall: Annotated[Literal["linear", "exponential"], LATER] = "linear"
    """How it gets there: by equal steps or by equal factors."""
    wrong_only: bool = False
    """Pull only where the reward is 0 or below."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends beyond 1 - clip and 1 + clip."""

    @model_validator(mode="after")
    def _has_a_start(self) -> Kdrl:
        if self.kd_last is not None and self.kd == 0:
            raise ValueError("kdrl falls from kd to kd_last: set kd above 0")
        return self


@stage("objective", examples="group", needs=("logps",), requires=("reference",))
def kdrl(config: Kdrl, *, batch: SequenceBatch) -> Loss:
    """Token mean of both; metric `teacher_k2`: the token mean of the pull before its coefficient."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    pull = k2(batch.logps, batch.reference_logps)
    if config.wrong_only:
        pull = pull * (batch.rewards <= 0)[:, None]
    kd = config.kd
    if config.kd_last is not None:
        kd = (linear if config.fall == "linear" else exponential)(batch.progress, kd, config.kd_last)
    value = token_mean(clipped(advantage, ratio, config.clip, config.clip) + kd * pull, batch)
    return Loss(value, {"teacher_k2": float(token_mean(pull.detach(), batch))})
