"""Direct preference optimisation: raise the chosen completion over the rejected one, relative to a reference policy.

L = -log sigmoid(beta * (D_chosen - D_rejected)), D = sum of log-probabilities over the completion minus the same under
the reference; averaged over pairs. Plain DPO repeated round after round lets the likelihood of chosen completions
fall until the policy collapses; `nll` adds an anchor, the token-mean NLL of the chosen ones.

Source: Rafailov et al. 2023, 2305.18290, eq. 7; the anchor is that of Pang et al. 2024, 2404.19733, there divided by
the length of each completion, here by the chosen tokens of the whole optimiser step; `label_smoothing` is the
conservative DPO of the same authors (Mitchell 2023, "A note on DPO with noisy preferences").
Changed: each pair's term is multiplied by its example weight.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import anchored, log_ratios, pair_loss, soft_logistic
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Dpo(Config):
    """Configuration of `dpo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    nll: NonNegativeFloat = 0.0
    """Coefficient of the chosen completions' token-mean NLL; 0.5 to 2 keeps repeated rounds from collapsing."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The probability that a pair is labelled the wrong way round; `robust_dpo` corrects for it without bias."""


@stage("objective", examples="pair", requires=("reference",))
def dpo(config: Dpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics: `accuracy` (share ranked as labelled) and `margin` (mean of the scaled difference)."""
    margin = config.beta * log_ratios(batch).difference
    loss = pair_loss(soft_logistic(margin, 1 - config.label_smoothing), margin, batch)
    return anchored(loss, config.nll, batch) if config.nll else loss
