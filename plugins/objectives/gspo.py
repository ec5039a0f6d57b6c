"""Group sequence policy optimisation: the ratio, and its clip, belong to the completion and not to the token.

L = mean over completions of -min(A s, A clip(s, 1 - low, 1 + high)), s = (pi / pi_behaviour)^(1 / length) of the whole
completion, A = (r - mean) / (std + 1e-4) within the group.

Source: Zheng et al. 2025, 2507.18071, eq. 5 to 7; bounds from its section 5.1.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import per_sequence
from strop.core.algebra.ratios import clipped, geometric_log_ratio, log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Gspo(Config):
    """Configuration of `gspo`."""

    low: Annotated[float, Field(gt=0, lt=1)] = 3e-4
    """The ratio's gradient ends below 1 - low, where the advantage is negative: much nearer than a token's."""
    high: Annotated[float, Field(gt=0)] = 4e-4
    """And above 1 + high, where it is positive."""


@stage("objective", examples="group", needs=("logps",))
def gspo(config: Gspo, *, batch: SequenceBatch) -> Loss:
    """One ratio and one term a completion."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    tokens = log_ratio(batch.logps, batch.behaviour_logps, batch.mask)
    ratio = geometric_log_ratio(tokens, batch.mask).exp()
    return Loss(per_sequence(clipped(advantage, ratio, config.low, config.high), batch))
