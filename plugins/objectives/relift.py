"""Reinforcement, and now and then supervision on demonstrations of what reinforcement cannot learn: the two take turns.

A step of completions is trained by Dr. GRPO without a clip, -(r - mean) pi / pi_old over a constant length; a step of
demonstrations by -log pi - entropy H, the mean over its tokens, H the entropy of the policy's distribution there.

`build: relift` lets prompts that no completion solves wait and hands out their demonstrations, stratum 1, once enough
have gathered; completions have stratum 0. Examples of different strata never share a step, and an epoch goes through
stratum 0 first: with `epochs: 1` that is one pass over the completions, then one over the demonstrations.

Source: Ma et al. 2025, 2506.07527 (ReLIFT), and its code (TheRoadQaQ/ReLIFT).
Changed: the ratio's denominator is the policy as training found it. The share of steps done goes by both, so that one
schedule of the learning rate spans them.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.advantages import centred
from strop.core.algebra.entropies import entropy_of
from strop.core.algebra.ratios import log_ratio
from strop.core.algebra.subsets import demonstrations, sequence_mean_of, token_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Relift(Config):
    """Configuration of `relift`."""

    length: PositiveFloat = 256
    """What every completion's sum is divided by: the most tokens that were sampled (`max_tokens`)."""
    entropy: NonNegativeFloat = 0.001
    """Coefficient of the entropy that is kept up on demonstrations."""


@stage(
    "objective",
    examples="group",
    needs=("stratum",),
    requires=("old",),
    requires_if={"entropy": "entropy"},
    in_turns=True,
)
def relift(config: Relift, *, batch: SequenceBatch) -> Loss:
    """Metric `demonstrated`: the share of the step's tokens that are of demonstrations, which is 0 or 1."""
    step = batch.step
    shown = demonstrations(step)
    advantage = batch.of(centred(step.rewards, step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.old_logps, batch.mask).exp()
    sampled = (-advantage * ratio * batch.mask).sum(1) / config.length
    likelihood = batch.logps + config.entropy * entropy_of(batch) if config.entropy else batch.logps
    value = sequence_mean_of(sampled, batch, ~shown) + token_mean_of(-likelihood, batch, shown)
    share = (batch.of(shown)[:, None] * batch.mask).sum() / batch.step_tokens
    return Loss(value, {"demonstrated": float(share)})
