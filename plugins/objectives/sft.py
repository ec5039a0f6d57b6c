"""Supervised fine-tuning: the negative log-likelihood of the target tokens, averaged over all of them.

With rollouts a verifier accepted it is rejection-sampling fine-tuning (STaR, RFT, ReST-EM, RAFT); those differ in how
they sample and build, not in the loss.

Source: Zelikman et al. 2022, 2203.14465 (STaR); Yuan et al. 2023, 2308.01825 (RFT).
Changed: each sequence's term is multiplied by its example weight; the divisor is the unweighted count of target tokens
of the whole optimiser step.
"""

from __future__ import annotations

from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Sft(Config):
    """Nothing to set: weights come with the examples."""


@stage("objective", examples="sft")
def sft(config: Sft, *, batch: SequenceBatch) -> Loss:
    """Token-mean negative log-likelihood, in nats."""
    weighted = batch.logps * batch.mask * batch.weights[:, None]
    return Loss(-weighted.sum() / batch.step_tokens)
