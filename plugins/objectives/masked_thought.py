"""Supervised, with some of the target's own tokens hidden from the policy that continues them.

L = mean over tokens of -log pi(token | prompt, earlier tokens of which a share reads as a mask). What follows must then
come from the question, or from further back, and not from the last steps alone.

Source: Chen et al. 2024, 2403.02178 (Masked Thought), and its code (ChangyuChen347/MaskedThought), which adds a token
to the vocabulary for the mask. Its scripts count the warm-up in batches; as a share the default is not their word.
Changed: the mask is a token the policy has already; each sequence's term is multiplied by its example weight.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.schedules import linear
from strop.core.corruption import Corruption
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class MaskedThought(Config):
    """Configuration of `masked_thought`."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the target's tokens that are hidden, each drawn by itself anew in every epoch."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the training over which it rises from 0."""
    token: str | None = None
    """The token that stands for a hidden one; null = the tokenizer's mask token, else its padding."""


def hidden(config: MaskedThought, progress: float) -> Corruption:
    """What is hidden at a share of the training done."""
    return Corruption(linear(progress, 0.0, config.share, config.warmup), "mask", config.token)


@stage("objective", examples="sft", corrupts=hidden)
def masked_thought(config: MaskedThought, *, batch: SequenceBatch) -> Loss:
    """Token-mean negative log-likelihood of the targets as they are."""
    return Loss(token_mean(-batch.logps, batch))
