"""The clipped ratio as a weight of the log-probability: no token loses its gradient.

L = mean over tokens of -sg(min(rho, 1 + high)) A log pi, A = (r - mean) / (std + 1e-4) within the group.

Source: MiniMax 2025, 2506.13585, eq. 4 and 5 (CISPO); no lower bound, as there.
Changed: TRL 1.16 clamps the ratio at its `epsilon_high` itself; here `high` counts from 1.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.ratios import log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Cispo(Config):
    """Configuration of `cispo`."""

    high: Annotated[float, Field(gt=0)] = 0.28
    """Largest weight, less 1."""


@stage("objective", examples="group", needs=("logps",))
def cispo(config: Cispo, *, batch: SequenceBatch) -> Loss:
    """REINFORCE with the importance weight, bounded above."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    weight = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp().clamp(max=1 + config.high).detach()
    return Loss(token_mean(-weight * advantage * batch.logps, batch))
