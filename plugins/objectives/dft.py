"""Dynamic fine-tuning: supervised, with each token weighted by the probability the policy gives it already.

L = -mean over tokens of sg(pi) log pi: the gradient of pi instead of log pi, so that an unlikely token (noise, or a
style the policy does not have) does not shout all others down. It is the policy gradient of a reward of 1 for drawing
just the target token: One-Token Rollout (Ming et al. 2025, 2509.26313), which draws tokens and gives b < 0 to those
that differ, has in expectation (1 - b) times this gradient at temperature 1, which Adam's scaling cancels.

Source: Wu et al. 2025, 2508.05629; as `loss_type="dft"` in TRL 1.16.
Changed: each sequence's term is multiplied by its example weight.
"""

from __future__ import annotations

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.likelihoods import by_own_probability
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Dft(Config):
    """Nothing to set."""


@stage("objective", examples="sft")
def dft(config: Dft, *, batch: SequenceBatch) -> Loss:
    """Token-mean negative log-likelihood, each token weighted by its own probability."""
    return Loss(token_mean(-by_own_probability(batch.logps), batch))
