"""Supervised, and against repeating oneself: each copy of a sentence is to be less likely than the one before.

L = mean over tokens of -log pi where a text stands as it came, and of -log(1 - |pi_n - decay sg(pi_(n-1))|) where a
sentence is repeated: pi_n is the probability of a token in the n-th copy, pi_(n-1) of the same token in the copy
before. A policy that saw a sentence once too often grows surer of it with every copy; here it learns to grow less sure.

`build: {use: repeated}` makes both kinds of rows; the stratum of a row is its number of copies, 0 where it has none.

Source: Xu et al. 2022, 2206.02369 (DITTO), and its code (Jxu-Thu/DITTO), whose script has decay .5 and whose default
is .95.
Changed: rows of both kinds share a step, there a step is of either kind with probability .5.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.lazy import torch
from strop.core.algebra.repetition import a_period_earlier, copied
from strop.core.algebra.selectors import mean_of_chosen
from strop.core.algebra.strata import strata_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch

LEAST = 1e-20
"""Of what the logarithm is taken of."""


class Ditto(Config):
    """Configuration of `ditto`."""

    decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How likely a copy is to be, as a multiple of the copy before."""


@stage("objective", examples="sft", needs=("stratum",))
def ditto(config: Ditto, *, batch: SequenceBatch) -> Loss:
    """Token mean over texts as they came and over the copied tokens; metric `copied`: the latters' mean probability."""
    step = batch.step
    if step.targets is None:
        raise ValueError("the batch has no targets: the trainer gives them")
    copies = strata_of(step)
    marks, periods = copied(step.targets, step.mask, copies)
    chosen = torch.where(copies[:, None] > 0, marks, step.mask)
    probability = batch.logps.exp()
    goal = config.decay * a_period_earlier(probability.detach(), batch.of(periods))
    apart = -(1 - (probability - goal).abs()).clamp(min=LEAST).log()
    loss = torch.where(batch.of(copies)[:, None] > 0, apart, -batch.logps)
    seen = (probability.detach() * batch.of(marks)).sum() / marks.sum().clamp(min=1)
    return Loss(mean_of_chosen(loss, batch, chosen), {"copied": float(seen)})
