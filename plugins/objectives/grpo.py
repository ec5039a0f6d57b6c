"""Group-relative policy optimisation: how much better than its group a completion is, in standard deviations.

L = mean over completions of the mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) + kl k3,
A = (r - mean) / (std + 1e-4) within the group, rho = pi / pi_behaviour.

Source: Shao et al. 2024, 2402.03300, eq. 3 and 4; epsilon and the unbiased deviation as in TRL 1.16.
With `kl_most` it is GRPO-D (Liu et al. 2025, 2503.16081): the coefficient of k3 falls from the middle of `kl` and
`kl_most` to `kl` at `kl_turn` of the training, and rises to `kl_most` at its end: free first, held later.
Changed: the ratio's denominator is the distribution that was sampled from, tempered and truncated, as it is stored.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.divergences import k3
from strop.core.algebra.schedules import v_shape
from strop.core.plugin import LATER, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Grpo(Clip):
    """Configuration of `grpo`."""

    kl: NonNegativeFloat = 0.0
    """Coefficient of k3 to the reference policy; the paper has 0.04."""
    kl_most: Annotated[PositiveFloat | None, LATER] = None
    """The coefficient at the end of a training, where `kl` is its least; null = it stays at `kl`."""
    kl_turn: Annotated[float, Field(gt=0, lt=1), LATER] = 0.3
    """Share of the training after which it rises."""

    @model_validator(mode="after")
    def _swings(self) -> Grpo:
        if self.kl_most is not None and not 0 < self.kl <= self.kl_most:
            raise ValueError("grpo's kl is the least and kl_most the most: set kl above 0 and not above kl_most")
        return self


@stage("objective", examples="group", needs=("logps",), requires_if={"reference": "kl"})
def grpo(config: Grpo, *, batch: SequenceBatch) -> Loss:
    """The clipped surrogate of each completion, averaged over completions."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    loss = surrogate(config, advantage, batch)
    if config.kl:
        kl = config.kl
        if config.kl_most is not None:
            kl = v_shape(batch.progress, kl, config.kl_most, config.kl_turn)
        loss = loss + kl * k3(batch.logps, batch.reference_logps)
    return Loss(sequence_mean(loss, batch))
