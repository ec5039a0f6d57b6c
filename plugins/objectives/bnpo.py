"""Advantages scaled by a Beta density fitted to the solve rates of the batch, which adapts as the policy learns.

L = mean over completions of the sum over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)), at most -cap A where
A < 0; A = (r - p) / Beta(p; a, b), p the group's solve rate. a = b = 1 is the mean as baseline, a = b = 3/2 about GRPO.

Source: Xiao et al. 2025, 2506.02864 (BNPO), and its code for the fit and the settings.
Not TRL's `loss_type="bnpo"`, which is a way to average.
"""

from __future__ import annotations

from strop.core.algebra.advantages import beta_scaled
from strop.core.algebra.aggregates import sequence_sum
from strop.core.algebra.clip import DualClip, surrogate
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Bnpo(DualClip):
    """Configuration of `bnpo`; rewards are 0 or 1."""


@stage("objective", examples="group", needs=("logps",))
def bnpo(config: Bnpo, *, batch: SequenceBatch) -> Loss:
    """Raises ValueError for rewards other than 0 and 1."""
    rewards = batch.step.rewards
    if bool(((rewards < 0) | (rewards > 1)).any()):
        raise ValueError("bnpo fits a Beta distribution to solve rates: its rewards lie between 0 and 1")
    advantage = batch.of(beta_scaled(rewards, batch.step.group_ids))[:, None]
    return Loss(sequence_sum(surrogate(config, advantage, batch), batch))
