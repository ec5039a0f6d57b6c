"""GRPO with a higher upper clip, a cap on bad tokens' loss, and every token of the step counting alike.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)), at most -cap A where A < 0.

Source: Yu et al. 2025, 2503.14476 (DAPO), and the settings of its recipe in verl.
Left out: the reward for overlong completions (a verifier's matter) and refilling groups of one reward
(`build: {use: grouped, contrast: true}` leaves them out).
"""

from __future__ import annotations

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.clip import DualClip, surrogate
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Dapo(DualClip):
    """Configuration of `dapo`."""


@stage("objective", examples="group", needs=("logps",))
def dapo(config: Dapo, *, batch: SequenceBatch) -> Loss:
    """Token-mean of the clipped surrogate."""
    advantage = batch.of(standardised(batch.step.rewards, batch.step.group_ids))[:, None]
    return Loss(token_mean(surrogate(config, advantage, batch), batch))
