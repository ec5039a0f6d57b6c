"""REINFORCE with the mean of the other completions of the prompt as the baseline.

L = mean over completions of -min(A rho, A clip(rho, 1 - low, 1 + high)), A = r - mean of the others in the group,
rho = pi / pi_behaviour of the whole completion.

Source: Ahmadian et al. 2024, 2402.14740, eq. 6 (baseline); the clipped ratio of whole completions as in TRL 1.16.
Left out: the penalty log(pi_old / pi_reference) in the reward.
"""

from __future__ import annotations

from strop.core.algebra.advantages import left_one_out
from strop.core.algebra.aggregates import per_sequence
from strop.core.algebra.clip import Clip
from strop.core.algebra.ratios import clipped, log_ratio, sequence_log_ratio
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Rloo(Clip):
    """Configuration of `rloo`."""


@stage("objective", examples="group", needs=("logps",))
def rloo(config: Rloo, *, batch: SequenceBatch) -> Loss:
    """One ratio and one term a completion."""
    advantage = batch.of(left_one_out(batch.step.rewards, batch.step.group_ids))[:, None]
    tokens = log_ratio(batch.logps, batch.behaviour_logps, batch.mask)
    ratio = sequence_log_ratio(tokens, batch.mask).exp()
    return Loss(per_sequence(clipped(advantage, ratio, config.low, config.high), batch))
