"""Weak-to-strong: learn a weaker supervisor's labels, but be confident, so as not to learn its mistakes too.

L = mean over tokens of (1 - c) (-log pi) + c H, H the entropy of the policy's distribution at the token.

Source: Burns et al. 2023, 2312.09390, and its code (openai/weak-to-strong, `loss.py`).
Changed: the second term there is the cross-entropy with the policy's own prediction hardened at a threshold that keeps
the share of classes, which a vocabulary has no use for; entropy, whose gradient sharpens likewise, stands for it (the
authors name entropy minimisation as its kin). Left out: raising c from 0 in the first fifth of training.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.entropies import entropy_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ConfidenceSft(Config):
    """Configuration of `confidence_sft`."""

    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """c: weight of the policy's own opinion against the label's; 0 = `sft`."""


@stage("objective", examples="sft", requires=("entropy",))
def confidence_sft(config: ConfidenceSft, *, batch: SequenceBatch) -> Loss:
    """Token mean of the mixture; metric `entropy`: the token mean of H."""
    entropy = entropy_of(batch)
    value = token_mean(-(1 - config.confidence) * batch.logps + config.confidence * entropy, batch)
    return Loss(value, {"entropy": float(token_mean(entropy.detach(), batch))})
