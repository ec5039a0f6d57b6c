"""REINFORCE with clipping as a mask and importance weights as an option: what of GRPO does the work off-policy.

L = -mean over tokens of A M w log pi, A = r - group mean. M: `one_side` drops tokens whose ratio has already gone
beyond the bound its advantage points to, `two_side` those outside the bounds at all. w: 1, or sg(rho).

Source: Yao et al. 2025, 2509.24203 (REC), and its code in Trinity-RFT.
Left out: the ring mask, exponential weights and the regularisers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from strop.core.algebra.advantages import centred
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.ratios import log_ratio, not_clipped, within
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Rec(Config):
    """Configuration of `rec`."""

    mask: Literal["one_side", "two_side"] = "one_side"
    """Which tokens are left out."""
    importance: bool = False
    """Weigh each token by its ratio."""
    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower bound of the ratio: 1 - low. The paper also has .6."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """Upper bound: 1 + high. The paper also has 2."""


@stage("objective", examples="group", needs=("logps",))
def rec(config: Rec, *, batch: SequenceBatch) -> Loss:
    """The mask and the weight carry no gradient."""
    advantage = batch.of(centred(batch.step.rewards, batch.step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask).exp().detach()
    if config.mask == "one_side":
        kept = not_clipped(advantage, ratio, config.low, config.high)
    else:
        kept = within(ratio, config.low, config.high)
    weight = ratio if config.importance else 1.0
    return Loss(token_mean(-advantage * kept * weight * batch.logps, batch))
