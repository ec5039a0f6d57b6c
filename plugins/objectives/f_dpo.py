"""DPO held to the reference by another divergence than the reverse KL.

L = -log sigmoid(beta (f'(t_chosen) - f'(t_rejected))), t = pi / pi_reference of the completion: f' = log t is DPO;
1 - 1/t forward KL, log(2t / (t + 1)) Jensen-Shannon, (t^(alpha - 1) - 1) / (alpha - 1) alpha. Forward KL and small
alpha keep the policy's spread; they punish a chosen completion that falls below the reference by an exponential.

Source: Wang et al. 2023, 2309.16240; alpha's form as in TRL 1.16.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from strop.core.algebra.pairs import alpha_divergence, forward_kl, jensen_shannon, log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class FDpo(Config):
    """Configuration of `f_dpo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    divergence: Literal["forward_kl", "js", "alpha"] = "js"
    """Which one; for the reverse KL use `dpo`."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the alpha-divergence: towards 1 it is the reverse KL, at 0 the forward one."""


@stage("objective", examples="pair", requires=("reference",))
def f_dpo(config: FDpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`, of the scores f'."""
    score: dict[str, Callable[[Tensor], Tensor]] = {
        "forward_kl": forward_kl,
        "js": jensen_shannon,
        "alpha": partial(alpha_divergence, alpha=config.alpha),
    }
    margin = config.beta * log_ratios(batch).of(score[config.divergence]).difference
    return pair_loss(logistic(margin), margin, batch)
