"""Supervised fine-tuning as inverse reinforcement learning, under a divergence of one's choice from the demonstrator.

L = -mean over demonstrations of phi(x), x = beta (S - S_reference): with phi(x) = -f*(-x), f* the conjugate of f,
this brings the occupancy of the policy to that of the demonstrations in the f-divergence.

    tv                  phi = x               plain SFT per sequence: the reference drops out of the gradient
    pearson             phi = x - x^2 / 4     up to x = 2, from where it is 1
    squared_hellinger   phi = x / (1 + x)     for x > -1

The last two push less on what has risen already. Below x = -1/2 squared Hellinger goes on along its tangent, slope 4.

Source: derived from the abstract of Wang et al. 2025, 2507.00018 ("Implicit reward as the bridge"); the authors'
formula was not at hand. Their second finding, a smaller learning rate, is `lr` of the train stage.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from strop.core.algebra.lazy import torch
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class FSft(Config):
    """Configuration of `f_sft`."""

    divergence: Literal["tv", "pearson", "squared_hellinger"] = "pearson"
    """Which divergence from the demonstrator is made small."""
    beta: PositiveFloat = 0.1
    """Scale of the implicit reward x; smaller = closer to plain SFT. Ours: the paper's was not at hand."""


@stage("objective", examples="sft", requires=("reference",))
def f_sft(config: FSft, *, batch: SequenceBatch) -> Loss:
    """Mean over sequences; metric `reward`: the mean of x."""
    x = config.beta * ((batch.logps - batch.reference_logps) * batch.mask).sum(1)
    if config.divergence == "tv":
        gain = x
    elif config.divergence == "pearson":
        top = x.clamp(max=2)
        gain = top - top**2 / 4
    else:
        inside = x.clamp(min=-0.5)
        gain = inside / (1 + inside) + 4 * torch.where(x < -0.5, x + 0.5, 0.0)
    value = -(batch.weights * gain).sum() / batch.step_sequences
    return Loss(value, {"reward": float(x.detach().sum()) / batch.step_sequences})
