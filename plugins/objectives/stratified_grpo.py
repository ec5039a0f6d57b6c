"""GRPO among completions of one kind: each is compared with the others of its stratum, and a little with the group.

L = mean over completions of the mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)),
A = alpha A_stratum + (1 - alpha) A_group, each (r - mean) / (deviation + 1e-6) with the divisor n. Completions that
differ in kind, as by how often they search, differ in what they can earn; one baseline for all favours a kind.

The stratum comes with the example: `build: {use: grouped, stratum: turns}` or `answer`. A stratum of one gives 0.

Source: Zhu et al. 2025, 2510.06214 (Stratified GRPO). The authors' alpha was not at hand: the default is not theirs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.advantages import standardised_in_strata
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.strata import strata_of
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class StratifiedGrpo(Clip):
    """Configuration of `stratified_grpo`."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Weight of the comparison within the stratum; the rest is that within the group."""


@stage("objective", examples="group", needs=("logps", "stratum"))
def stratified_grpo(config: StratifiedGrpo, *, batch: SequenceBatch) -> Loss:
    """The clipped surrogate of each completion, averaged over completions."""
    step = batch.step
    found = standardised_in_strata(step.rewards, step.group_ids, strata_of(step), config.alpha)
    return Loss(sequence_mean(surrogate(config, batch.of(found)[:, None], batch), batch))
