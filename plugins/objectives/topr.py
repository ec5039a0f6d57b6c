"""Tapered off-policy REINFORCE: good completions are learnt fully, bad ones only as far as the policy still makes them.

L = -mean over completions of the sum over tokens of sg(alpha) R log pi; alpha = 1 where R > 0, else
clamp(pi / pi_behaviour, 0, 1) of the whole completion. R = (r - shift), so that wrong ones are negative.

Source: Le Roux et al. 2025, 2503.14286 (TOPR), eq. 8, with its whole-completion ratio.
Changed: rewards 0 and 1 become -1 and +1 by R = 2 r - 1; `shift` moves the baseline, as the paper's c.
"""

from __future__ import annotations

from strop.core.algebra.aggregates import sequence_sum
from strop.core.algebra.lazy import torch
from strop.core.algebra.ratios import log_ratio, sequence_log_ratio
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Topr(Config):
    """Configuration of `topr`."""

    shift: float = 0.0
    """Taken off 2 r - 1; above 0 gives wrong completions more weight."""


@stage("objective", examples="group", needs=("logps",))
def topr(config: Topr, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part."""
    reward = (2 * batch.rewards - 1 - config.shift).nan_to_num()[:, None]
    tokens = log_ratio(batch.logps, batch.behaviour_logps, batch.mask)
    taper = torch.where(reward > 0, 1.0, sequence_log_ratio(tokens, batch.mask).exp().clamp(max=1)).detach()
    return Loss(sequence_sum(-taper * reward * batch.logps, batch))
