"""Sequence likelihood calibration: pairs are pushed apart up to a margin, and no further.

L = max(0, 1 - beta (D_chosen - D_rejected)) + nll NLL_chosen, D = log pi - log pi_reference of the completion ("hinge
norm"); with `norm: false` D = log pi, as in SLiC-HF, whose margin delta is 1 / beta.

Source: Zhao et al. 2023, 2305.10425; Liu et al. 2023, 2309.06657 (RSO), for the norm and its beta.
Changed: the loss is divided by delta. Left out: the regulariser on a target from the SFT data; `nll` is on the chosen.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import anchored, hinge, log_ratios, pair_loss, sums
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Slic(Config):
    """Configuration of `slic`."""

    beta: PositiveFloat = 0.05
    """1 / beta is the difference, in nats, beyond which a pair has no gradient."""
    norm: bool = True
    """Scores relative to the reference policy; without, log-probabilities alone."""
    nll: NonNegativeFloat = 0.0
    """Coefficient of the chosen completions' token-mean NLL."""


@stage("objective", examples="pair", requires_if={"reference": "norm"})
def slic(config: Slic, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.beta * (log_ratios(batch) if config.norm else sums(batch)).difference
    loss = pair_loss(hinge(margin), margin, batch)
    return anchored(loss, config.nll, batch) if config.nll else loss
