"""Supervised, with some of the target's own tokens read as what the policy would have written there.

L = mean over tokens of -log pi(token | prompt, earlier tokens of which a share reads as the policy's own likeliest
token). In use the policy continues its own tokens, mistakes included; here it learns to come back from them.

Source: Bengio et al. 2015, 1506.03099, offline as Cen et al. 2024, 2410.14655 have it: all of a sequence's own tokens
come from one more forward pass over the target, before the step. Derived from the abstract of the latter; its formula
was not at hand.
Changed: the share rises linearly; each sequence's term is multiplied by its example weight.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.schedules import linear
from strop.core.corruption import Corruption
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ScheduledSampling(Config):
    """Configuration of `scheduled_sampling`."""

    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability at first that a token of the target is read as the policy's own."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.25
    """And at the end of the training."""


def own(config: ScheduledSampling, progress: float) -> Corruption:
    """What is replaced at a share of the training done."""
    return Corruption(linear(progress, config.start, config.end), "own")


@stage("objective", examples="sft", corrupts=own)
def scheduled_sampling(config: ScheduledSampling, *, batch: SequenceBatch) -> Loss:
    """Token-mean negative log-likelihood of the targets as they are."""
    return Loss(token_mean(-batch.logps, batch))
