"""GRPO on a group that holds one completion the policy would not have found alone, which learns by a shaped likelihood.

L = mean over completions of the sum over tokens of -A g / length, A = r - mean of the whole group,
g = pi / pi_old without a clip on the policy's own completions and pi / (pi + gamma) on the guided one: that keeps a
gradient on tokens so unlikely that a ratio would drown them.

Source: Critique-GRPO, Zhang et al. 2025, 2506.03106 (zhangxy-2019/critique-GRPO), whose guided completion is a
refinement after a critique; LUFFY, Yan et al. 2025, 2504.14945, where it is a stronger model's.
Changed: the guided completion is the member of its group without a reward (`demonstrated` builds such groups) and has
the reward `guided`, so that refinements must have been checked. The ratio's denominator is the policy as training
found it, as the guided one has no other.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.advantages import centred
from strop.core.algebra.aggregates import constant
from strop.core.algebra.lazy import torch
from strop.core.algebra.likelihoods import shaped
from strop.core.algebra.ratios import log_ratio
from strop.core.algebra.subsets import demonstrations
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class CritiqueGrpo(Config):
    """Configuration of `critique_grpo`."""

    gamma: PositiveFloat = 0.1
    """The probability at which a guided token learns most."""
    guided: float = 1.0
    """Reward of the guided completion."""
    length: PositiveFloat = 1024.0
    """What sums over tokens are divided by; a scale of the loss, the same for every completion."""


@stage("objective", examples="group", requires=("old",))
def critique_grpo(config: CritiqueGrpo, *, batch: SequenceBatch) -> Loss:
    """Dr. GRPO's sum, with the guided completion's own likelihood term."""
    step = batch.step
    shown = demonstrations(step)
    advantage = batch.of(centred(step.rewards.masked_fill(shown, config.guided), step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.old_logps, batch.mask).exp()
    gain = torch.where(batch.of(shown)[:, None], shaped(batch.logps, config.gamma), ratio)
    return Loss(constant(-advantage * gain, batch, config.length))
