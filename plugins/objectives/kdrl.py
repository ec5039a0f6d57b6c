"""Distillation and reinforcement on the policy's own samples: GRPO with a pull to a teacher.

L = mean over tokens of -min(A rho, A clip(rho, 1 - e, 1 + e)) + kd k2(pi, teacher), A standardised in the group. k2 in
the loss has the gradient of KL(pi || teacher) on samples of pi. The teacher is the reference policy.

Source: Xu et al. 2025, 2506.02208.
Left out: lowering `kd` from 5e-3 to 1e-3 during training; lower it from round to round.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.divergences import k2
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Kdrl(Config):
    """Configuration of `kdrl`."""

    kd: NonNegativeFloat = 5e-3
    """Coefficient of the pull to the teacher."""
    wrong_only: bool = False
    """Pull only where the reward is 0 or below."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends beyond 1 - clip and 1 + clip."""


@stage("objective", examples="group", needs=("logps",), requires=("reference",))
def kdrl(config: Kdrl, *, batch: SequenceBatch) -> Loss:
    """Token mean of both; metric `teacher_k2`: the token mean of the pull before its coefficient."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    pull = k2(batch.logps, batch.reference_logps)
    if config.wrong_only:
        pull = pull * (batch.rewards <= 0)[:, None]
    value = token_mean(clipped(advantage, ratio, config.clip, config.clip) + config.kd * pull, batch)
    return Loss(value, {"teacher_k2": float(token_mean(pull.detach(), batch))})
