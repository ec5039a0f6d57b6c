"""Length-desensitised DPO: what the longer completion says beyond the length of the shorter one counts for less.

L = DPO's, where each log-probability is the sum over the first min(|chosen|, |rejected|) covered tokens plus alpha
times the sum over the rest.

Source: Liu et al. 2024, 2409.06411; TRL 1.16's `ld_alpha`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from strop.core.algebra.pairs import beyond_shared, log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class LdDpo(Config):
    """Configuration of `ld_dpo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the tokens beyond the shared length; 1 is DPO. The paper tunes it by model."""


@stage("objective", examples="pair", requires=("reference",))
def ld_dpo(config: LdDpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.beta * log_ratios(beyond_shared(batch, config.alpha)).difference
    return pair_loss(logistic(margin), margin, batch)
