"""REINFORCE++: rewards whitened over all tokens of the batch instead of within a group.

L = mean over completions of the mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)),
A = the return of each token, less the mean of all of the step's tokens, over their deviation.
`baseline`: returns of r - group mean, then the same whitening.

Source: Hu et al. 2025, 2501.03262; whitening as in verl.
Left out: the penalty log(pi_old / pi_reference) in the reward.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.advantages import centred, plain
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.spread import at_last, reward_to_go, whitened
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ReinforcePp(Clip):
    """Configuration of `reinforce_pp`."""

    baseline: bool = False
    """Take the group's mean off each reward first (REINFORCE++-baseline)."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token; the reward stands at the last one."""


@stage("objective", examples="group", needs=("logps",))
def reinforce_pp(config: ReinforcePp, *, batch: SequenceBatch) -> Loss:
    """Advantages of tokens over the whole step; a completion that could not be scored has no part in them."""
    step = batch.step
    mask = step.mask * ~step.rewards.isnan()[:, None]
    rewards = centred(step.rewards, step.group_ids) if config.baseline else plain(step.rewards)
    advantage = batch.of(whitened(reward_to_go(at_last(rewards, mask), mask, config.gamma), mask))
    return Loss(sequence_mean(surrogate(config, advantage, batch), batch))
