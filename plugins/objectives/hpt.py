"""Hybrid post-training: reinforcement where the policy solves the prompt, a demonstration where it does not.

Of each group the n solved completions decide: L = on(n) L_RL + off(n) L_SFT. As a gate, n <= gate drops the completions
and trains on the group's demonstration, and any other group is trained by Dr. GRPO without a clip,
-(r - mean) pi / pi_old. As a table, (on, off) goes by n = 0, 1, 2, 3 and from 4 on.

Source: Lv et al. 2025, 2509.04419 (TsinghuaC3I/Unify-Post-Training, `mix_trainer.py`). ReLIFT (Ma et al. 2025,
2506.07527, TheRoadQaQ/ReLIFT) is near the gate at 0 with `entropy` .001; there the two take turns, as with `relift`,
here they share a step.
Changed: a demonstration is the member of its group without a reward (`demonstrated` builds such groups); both terms
are averaged over the tokens of all that takes part in the step. The ratio's denominator is the policy as training
found it, as demonstrations have no other; `entropy` goes by all that takes part, in HPT's code by the policy's own
completions and in ReLIFT's by demonstrations. Both have .001.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import NonNegativeFloat, NonNegativeInt

from strop.core.algebra.advantages import centred
from strop.core.algebra.entropies import entropy_of
from strop.core.algebra.groups import group_sum
from strop.core.algebra.lazy import torch
from strop.core.algebra.ratios import log_ratio
from strop.core.algebra.subsets import binary, demonstrations, token_mean_of
from strop.core.plugin import LATER, Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch

TABLE = ((0.0, 1.0), (0.125, 0.5), (0.25, 0.25), (0.5, 0.125), (1.0, 0.0))
"""(on, off) by the number of completions solved; the code's own key counts the demonstration as well."""


class Hpt(Config):
    """Configuration of `hpt`."""

    gate: NonNegativeInt | None = 0
    """Most solved completions with which a group is trained on its demonstration; null = the table instead."""
    sft: NonNegativeFloat = 1.0
    """Coefficient of the demonstrations; .3 for a model of 1.5 billion parameters."""
    entropy: Annotated[NonNegativeFloat, LATER] = 0.0
    """Coefficient of the policy's entropy, which is kept up over all that takes part."""


@stage("objective", examples="group", requires=("old",), requires_if={"entropy": "entropy"})
def hpt(config: Hpt, *, batch: SequenceBatch) -> Loss:
    """Token mean over what takes part; metric `demonstrated`: the share of those tokens that are of demonstrations."""
    step = batch.step
    solved = group_sum(binary(step.rewards), step.group_ids)
    if config.gate is None:
        table = solved.new_tensor(TABLE)[solved.long().clamp(max=len(TABLE) - 1)]
        on, off = table[:, 0], table[:, 1]
    else:
        on = (solved > config.gate).to(solved.dtype)
        off = 1 - on
    shown = demonstrations(step)
    part = torch.where(shown, off, on)
    advantage = batch.of(centred(step.rewards, step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.old_logps, batch.mask).exp()
    here = batch.of(shown)[:, None]
    loss = torch.where(here, -config.sft * batch.logps, -advantage * ratio)
    if config.entropy:
        loss = loss - config.entropy * entropy_of(batch)
    value = token_mean_of(batch.of(part)[:, None] * loss, batch, part > 0)
    share = token_mean_of(here.to(loss.dtype).expand_as(loss), batch, part > 0)
    return Loss(value, {"demonstrated": float(share)})
