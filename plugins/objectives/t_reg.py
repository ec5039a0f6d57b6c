"""Token-level reward regularisation: DPO that also knows which tokens of a completion are good.

L = -log sigmoid(beta (D_chosen - D_rejected)) + alpha w (R_chosen + R_rejected), D = log pi - log pi_reference of the
completion, R = -beta sum_t r_t log pi_t of a side, and w = sigmoid(beta (D_rejected - D_chosen)) without gradient: the
term fades as the pair is told apart. r_t = sigmoid(log p(y_t | better) - log p(y_t | worse)) - 1/2 is the policy's own
word on a token: `better` and `worse` are prompts that ask for a good and for a bad completion, and p is the reference.

Source: Zhou et al. 2024, 2412.02685.
Changed: p is the reference policy. The texts of the prompts are settings, there examples of theirs are in the system
prompt.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import contrasted, log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch

Prompt = Annotated[str, Field(pattern=r"(?s)^.*\{prompt\}.*$")]


class TReg(Config):
    """Configuration of `t_reg`."""

    better: Prompt
    """Prompt that asks for a good completion, with `{prompt}` where the example's own stands."""
    worse: Prompt
    """Prompt that asks for a bad one."""
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    alpha: NonNegativeFloat = 0.25
    """Coefficient of the tokens' term; .1 to .5."""


@stage(
    "objective",
    examples="pair",
    requires=("reference",),
    behind=lambda config: {"better": config.better, "worse": config.worse},
)
def t_reg(config: TReg, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`. Raises ValueError where the batch lacks the completions behind the prompts."""
    if not {"better", "worse"} <= batch.behind.keys():
        raise ValueError("the batch has no log-probabilities behind the prompts `better` and `worse`")
    margin = config.beta * log_ratios(batch).difference
    better, worse = batch.behind["better"], batch.behind["worse"]
    told = [contrasted(*sides) for sides in zip(better, worse, strict=True)]
    chosen = -config.beta * (told[0] * batch.chosen_logps * batch.chosen_mask).sum(1)
    rejected = -config.beta * (told[1] * batch.rejected_logps * batch.rejected_mask).sum(1)
    apart = (-margin.detach()).sigmoid()
    return pair_loss(logistic(margin) + config.alpha * apart * (chosen + rejected), margin, batch)
