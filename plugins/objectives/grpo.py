"""Group-relative policy optimisation: how much better than its group a completion is, in standard deviations.

L = mean over completions of the mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) + kl k3,
A = (r - mean) / (std + 1e-4) within the group, rho = pi / pi_behaviour.

Source: Shao et al. 2024, 2402.03300, eq. 3 and 4; epsilon and the unbiased deviation as in TRL 1.16.
Changed: the ratio's denominator is the distribution that was sampled from, tempered and truncated, as it is stored.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.divergences import k3
from strop.core.algebra.ratios import clipped, log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Grpo(Config):
    """Configuration of `grpo`."""

    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """And above 1 + high, where it is positive."""
    kl: NonNegativeFloat = 0.0
    """Coefficient of k3 to the reference policy; the paper has 0.04."""


@stage("objective", examples="group", needs=("logps",), requires_if={"reference": "kl"})
def grpo(config: Grpo, *, batch: SequenceBatch) -> Loss:
    """The clipped surrogate of each completion, averaged over completions."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp()
    loss = clipped(advantage, ratio, config.low, config.high)
    if config.kl:
        loss = loss + config.kl * k3(batch.logps, batch.reference_logps)
    return Loss(sequence_mean(loss, batch))
