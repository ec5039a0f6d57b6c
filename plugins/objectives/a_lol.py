"""Advantage-leftover-lunch: off-policy learning from the completions that are better than the reference would do.

L = mean over completions with A > 0 of -A sg(clip(pi / pi_reference, 1 - e, 1 + e)) S, S = sum of log-probabilities:
one step a completion is one action, so the ratio is that of the whole, and those that are no better are dropped.

Source: Baheti et al. 2023, 2305.14718 (abaheti95/LoL-RL).
Changed: the reference's value of a prompt, there a head trained on the reference, is the mean reward of its group:
the same in expectation where the reference sampled the group. The paper draws completions in proportion to A; here
each is seen alike.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from strop.core.algebra.advantages import centred
from strop.core.algebra.ratios import log_ratio, sequence_log_ratio
from strop.core.algebra.subsets import sequence_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ALol(Config):
    """Configuration of `a_lol`."""

    ratio: Literal["sequence", "token"] | None = "sequence"
    """Level of the importance weight against the reference; null = 1 throughout, without a reference."""
    clip: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The importance weight stays within 1 - clip and 1 + clip."""


@stage("objective", examples="group", requires_if={"reference": "ratio"})
def a_lol(config: ALol, *, batch: SequenceBatch) -> Loss:
    """Sum over tokens, mean over the completions that are better than their group."""
    advantage = centred(batch.step.rewards, batch.step.group_ids)
    loss = -batch.logps * batch.mask
    if config.ratio is not None:
        level = log_ratio(batch.logps.detach(), batch.reference_logps, batch.mask)
        if config.ratio == "sequence":
            level = sequence_log_ratio(level, batch.mask)
        loss = loss * level.exp().clamp(1 - config.clip, 1 + config.clip)
    return Loss(sequence_mean_of(batch.of(advantage) * loss.sum(1), batch, advantage > 0))
