"""Contextualised critiques with constrained preference optimisation: follow feedback where it applies, nowhere else.

L = DPO, on prompts that the feedback is about, + near NLL, on prompts that only look as if, + far NLL, on any others.
DPO prefers the completion revised by the feedback to the policy's own; the two NLLs, means over tokens, hold on to the
policy's own completion. Each of the three is the mean over the pairs of its kind in the step.

`build: scoped` makes the pairs; a pair's stratum is its scope, 0 in, 1 near, 2 out of it.

Source: Stephan et al. 2024, 2402.10893 (C3PO), and its code (austrian-code-wizard/c3po), whose released setting is
this: there the two are a distillation (1 - l) NLL + l T^2 KL(reference || pi) with l = 0.
Left out: l above 0, which needs the whole distributions of the reference.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import log_ratios, logistic, mean_of_kind, means
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch

IN, NEAR, OUT = 0, 1, 2


class C3po(Config):
    """Configuration of `c3po`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference where it follows the feedback; larger = closer."""
    near: NonNegativeFloat = 0.2
    """Coefficient of its own completions where the feedback only seems to apply."""
    out: NonNegativeFloat = 0.1
    """Coefficient of its own completions elsewhere."""


@stage("objective", examples="pair", needs=("stratum",), requires=("reference",))
def c3po(config: C3po, *, batch: PairBatch) -> Loss:
    """Metrics, of the pairs in scope and with their weights: `accuracy` and `margin` as `dpo`."""
    margin = config.beta * log_ratios(batch).difference
    own = -means(batch).chosen
    value = (
        mean_of_kind(logistic(margin), IN, batch)
        + config.near * mean_of_kind(own, NEAR, batch)
        + config.out * mean_of_kind(own, OUT, batch)
    )
    right = (margin > 0).to(margin.dtype)
    told = {"accuracy": right, "margin": margin.detach()}
    return Loss(value, {name: float(mean_of_kind(values, IN, batch)) for name, values in told.items()})
