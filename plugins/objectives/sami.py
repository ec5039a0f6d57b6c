"""Self-supervised alignment with mutual information: a completion is to tell the principles it was written under.

Of n sets of principles (constitutions) and a completion written under each, s_ij is the log-probability a token of
completion j under constitution i. L = the mean of two cross-entropies whose targets are the diagonal: which completion
belongs to a constitution (rows), and which constitution to a completion (columns). Averaged over the step's matrices.

`build: crossed` makes the groups: n completions behind n prompts are n^2 examples.

Source: Fränken et al. 2024, 2404.14313 (SAMI), and its code (janphilippfranken/sami).
Changed: the matrix, whose entries may lie in several micro-batches, is read once before the step, without dropout, and
each entry then learns by its slope: the same gradient. Example weights weigh an entry's slope.
"""

from __future__ import annotations

from strop.core.algebra.lazy import torch
from strop.core.algebra.matrices import matching, places, slopes
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Sami(Config):
    """Nothing to set."""


@stage("objective", examples="group", needs=("stratum",), requires=("step_logps",))
def sami(config: Sami, *, batch: SequenceBatch) -> Loss:
    """Metric `matched`: the share of constitutions whose own completion is the likeliest of all under them."""
    step = batch.step
    if step.logps is None:
        raise ValueError('the step has no logps: the objective\'s mark asks for them with requires=("step_logps",)')
    means = (step.logps * step.mask).sum(1) / step.mask.sum(1).clamp(min=1)
    matrices = places(step)
    slope, value, matched = torch.zeros_like(means), 0.0, 0.0
    for place in matrices:
        scores = means[place]
        slope[place] = slopes(scores) / len(matrices)
        value += float(matching(scores)) / len(matrices)
        matched += float((scores.argmax(1).cpu() == torch.arange(len(scores))).float().mean()) / len(matrices)
    now = (batch.logps * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)
    pull = (batch.of(slope) * batch.weights * (now - now.detach())).sum()
    share = len(batch.rows) / batch.step_sequences
    return Loss(pull + share * value, {"matched": share * matched})
