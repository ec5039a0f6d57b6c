"""Supervised, on the tokens that surprise the policy more than its own uncertainty explains.

Tokens are ranked by d = -log pi - c H, H the entropy of the policy's distribution there; the top share is trained on:
L = mean over those of -log pi. What the policy is sure of and right about is left alone, and so it keeps its entropy.

Source: Light-IF, Wang et al. 2025, 2508.03178 (Entropy-SFT), and its code (Qihoo360/Light-IF,
`custom_entropy_trainer.py`).
Changed: the share is that of each sequence, there of all tokens of a device's batch, whose cut would then change the
result; each sequence's term is multiplied by its example weight.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.entropies import entropy_of, largest, share_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class EntropySft(Config):
    """Configuration of `entropy_sft`."""

    coefficient: NonNegativeFloat = 0.8
    """How much uncertainty excuses surprise."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of each sequence's tokens that is trained on; 1 = `sft`."""


@stage("objective", examples="sft", requires=("entropy",))
def entropy_sft(config: EntropySft, *, batch: SequenceBatch) -> Loss:
    """Mean negative log-likelihood of the chosen tokens."""
    chosen = largest(-batch.logps - config.coefficient * entropy_of(batch), batch.mask, config.share)
    tokens = share_of(batch.step.mask, config.share).sum().clamp(min=1)
    return Loss(-(batch.logps * chosen * batch.weights[:, None]).sum() / tokens)
