"""Direct preference optimisation: raise the chosen completion over the rejected one, relative to a reference policy.

L = -log sigmoid(beta * (D_chosen - D_rejected)), D = sum of log-probabilities over the completion minus the same under
the reference; averaged over pairs. Plain DPO repeated round after round lets the likelihood of chosen completions
fall until the policy collapses; `nll` adds an anchor, the token-mean NLL of the chosen ones.

Source: Rafailov et al. 2023, 2305.18290, eq. 7; the anchor is that of Pang et al. 2024, 2404.19733, there divided by
the length of each completion, here by the chosen tokens of the whole optimiser step.
Changed: each pair's term is multiplied by its example weight.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Dpo(Config):
    """Configuration of `dpo`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    nll: NonNegativeFloat = 0.0
    """Coefficient of the chosen completions' token-mean NLL; 0.5 to 2 keeps repeated rounds from collapsing."""


@stage("objective", examples="pair", requires=("reference",))
def dpo(config: Dpo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics: `accuracy` (share ranked as labelled) and `margin` (mean of the scaled difference)."""
    from torch.nn.functional import logsigmoid

    if batch.reference_chosen is None or batch.reference_rejected is None:
        raise ValueError("dpo needs the reference policy's log-probabilities: the batch has none")
    chosen = (batch.chosen_logps * batch.chosen_mask).sum(dim=1)
    rejected = (batch.rejected_logps * batch.rejected_mask).sum(dim=1)
    margin = config.beta * ((chosen - batch.reference_chosen) - (rejected - batch.reference_rejected))
    value = -(batch.weights * logsigmoid(margin)).sum() / batch.step_pairs
    if config.nll:
        value = value - config.nll * (batch.weights * chosen).sum() / batch.step_chosen_tokens
    metrics = {
        "accuracy": float((margin > 0).sum()) / batch.step_pairs,
        "margin": float(margin.detach().sum()) / batch.step_pairs,
    }
    return Loss(value, metrics)
