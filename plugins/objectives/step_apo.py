"""Step-level advantage preference optimisation: DPO on the step where two solutions part, less what its value explains.

L = -log sigmoid(beta (D_chosen - D_rejected) - alpha (v_chosen - v_rejected)), D = log pi - log pi_reference of the
step, v its value from a tree search. The better the chosen step, the further apart the two are pushed.

The pair's prompt ends where the two part, and its sides are the steps; its `margin` column is v_chosen - v_rejected, so
score steps by their values and `build: best_worst` writes it.

Source: Wang et al. 2024, 2409.08642 (CPL), and its code (keesh0410/CPL-Reasoning, `sigmoid_a`), which adds
alpha (v_rejected - v_chosen) inside the sigmoid.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.pairs import log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class StepApo(Config):
    """Configuration of `step_apo`."""

    beta: PositiveFloat = 0.3
    """How strongly the policy is held to the reference; larger = closer."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the values' difference."""


@stage("objective", examples="pair", needs=("margin",), requires=("reference",))
def step_apo(config: StepApo, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`, before the offset."""
    margin = config.beta * log_ratios(batch).difference
    return pair_loss(logistic(margin - config.alpha * batch.margins), margin, batch)
