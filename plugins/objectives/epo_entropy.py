"""An entropy bonus held within a band around what the entropy has been, so that it neither collapses nor runs away.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) - c (H - smooth w d), d = how far a token's entropy
H lies outside [least, most] times the mean entropy of the earlier steps; from `begin` of the training on.
w, where `decline` is set, falls from 1 to .83 over the first half and from .8 to .04 over the second.

Source: EPO, Xu et al. 2025, 2509.22576, and its code (WujiangXu/EPO, `dp_actor.py`). A is GRPO's.
Changed: the code's penalty is .1 for a token outside the band, whatever the distance, and so has no gradient; d has
one. Its mean of earlier steps is kept for each turn of an episode, and its `begin` is a turn; here both are of
optimiser steps, as a completion has no turns the loss knows of.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.entropies import entropy_of, outside
from strop.core.algebra.schedules import decline
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class EpoEntropy(Clip):
    """Configuration of `epo_entropy`."""

    entropy: NonNegativeFloat = 1e-3
    """Coefficient c of the bonus and its penalty."""
    smooth: NonNegativeFloat = 1.0
    """Weight of the penalty within it."""
    least: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Lower end of the band, as a multiple of the mean of the earlier steps; the authors' script has .5."""
    most: Annotated[float, Field(ge=1)] = 1.2
    """Upper end; the script has 1.5."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the training before which there is no penalty."""
    decline: bool = False
    """Let the penalty fade over the training."""


@stage("objective", examples="group", needs=("logps",), requires=("entropy",))
def epo_entropy(config: EpoEntropy, *, batch: SequenceBatch) -> Loss:
    """Metrics: `entropy`, the token mean that later steps are held against, and `outside`, the token mean of d."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    value = token_mean(surrogate(config, advantage, batch), batch)
    entropy = entropy_of(batch)
    mean = token_mean(entropy, batch)
    far = mean.new_zeros(())
    if batch.history and batch.progress >= config.begin:
        before = sum(metrics["entropy"] for metrics in batch.history) / len(batch.history)
        far = token_mean(outside(entropy, config.least * before, config.most * before), batch)
    weight = decline(batch.progress) if config.decline else 1.0
    value = value - config.entropy * (mean - config.smooth * weight * far)
    return Loss(value, {"entropy": float(mean.detach()), "outside": float(far.detach())})
