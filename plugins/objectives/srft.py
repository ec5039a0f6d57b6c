"""Supervised and reinforcement fine-tuning in one step, each weighted by how sure the policy is.

L = .5 exp(-H) L_SFT(demonstrations) - A pi (demonstrations)
    - .1 exp(H) log pi (solved completions) + log pi (completions not solved),

H the policy's entropy, without gradient. A demonstration has reward 1 and its advantage A is that within the union of
demonstration and completions; the ratio's denominator is 1, as nobody knows how likely it was to its author.

Source: Fu et al. 2025, 2506.19767.
Changed: H is the mean over each sequence's own tokens, there over the batch; each of the four expectations is the mean
over its tokens in the step; rewards are 0 and 1, not -1 and 1. The clip of the demonstrations' ratio is left out: with
A >= 0 and a ratio of at most 1 it never acts. A demonstration is the member of its group without a reward.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.entropies import sequence_entropy
from strop.core.algebra.likelihoods import probability
from strop.core.algebra.subsets import binary, demonstrations, token_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Srft(Config):
    """Configuration of `srft`."""

    sft: NonNegativeFloat = 0.5
    """Of exp(-H): weight of the demonstrations' likelihood, less where the policy is unsure."""
    rl: NonNegativeFloat = 0.1
    """Of exp(H): weight of solved completions, more where the policy is unsure."""


@stage("objective", examples="group", requires=("entropy",))
def srft(config: Srft, *, batch: SequenceBatch) -> Loss:
    """The four terms' sum."""
    step = batch.step
    binary(step.rewards)
    shown = demonstrations(step)
    advantage = batch.of(standardised(step.rewards.masked_fill(shown, 1.0), step.group_ids))[:, None]
    entropy = sequence_entropy(batch)[:, None]
    logps = batch.logps
    demonstrated = -config.sft * (-entropy).exp() * logps - advantage * probability(logps)
    value = (
        token_mean_of(demonstrated, batch, shown)
        + token_mean_of(-config.rl * entropy.exp() * logps, batch, step.rewards == 1)
        + token_mean_of(logps, batch, step.rewards == 0)
    )
    return Loss(value)
