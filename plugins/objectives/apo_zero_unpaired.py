"""Anchored preference optimisation without pairs: good completions gain likelihood and bad ones lose it.

L = mean of 1 - sigmoid(beta D) for good completions and sigmoid(beta D) for bad ones, D = log pi - log pi_reference of
the completion: `kto` with the reference itself as the point of reference.

A reward above `threshold` makes a completion good; one that could not be scored counts for nothing.

Source: D'Oosterlinck et al. 2024, 2408.06266, eq. 7, one side at a time as in TRL 1.16's KTOTrainer.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.lazy import torch
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ApoZeroUnpaired(Config):
    """Configuration of `apo_zero_unpaired`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""
    threshold: float = 0.5
    """Rewards above it are desirable."""


@stage("objective", examples="group", requires=("reference",))
def apo_zero_unpaired(config: ApoZeroUnpaired, *, batch: SequenceBatch) -> Loss:
    """Mean over scored completions."""
    known = ~batch.rewards.isnan()
    reward = config.beta * ((batch.logps - batch.reference_logps) * batch.mask).sum(1)
    values = torch.where(batch.rewards > config.threshold, -reward, reward).sigmoid()
    n_known = (~batch.step.rewards.isnan()).sum().clamp(min=1)
    return Loss((values * known * batch.weights).sum() / n_known)
