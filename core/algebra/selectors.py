"""Which of a step's sequences and tokens are trained on; the choice never depends on the cut into micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.groups import numbered
from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import SequenceBatch, StepRows


def widest(values: Tensor, n: int) -> Tensor:
    """[S] whether it belongs to the n values [S] of largest variance, which are some of the largest and some of the
    smallest. Of equal values the earlier counts as the larger; of equal variances the part with more of the largest is
    taken."""
    count = len(values)
    if n >= count:
        return torch.ones_like(values, dtype=torch.bool)
    order = values.argsort(descending=True, stable=True)
    falling = values[order]
    best, found = float("-inf"), order[:n]
    for top in range(n, -1, -1):
        ends = torch.cat([falling[:top], falling[count - (n - top) :]])
        spread = float(ends.var(unbiased=False))
        if spread > best + 1e-9:
            best, found = spread, torch.cat([order[:top], order[count - (n - top) :]])
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[found] = True
    return chosen


def balanced(solved: Tensor, taken: Tensor, group_ids: Tensor, keep: int) -> Tensor:
    """[S] `keep` members of each group, half of them solved; where one kind is short the other fills up.

    Of each kind those at even spaces in the order of the step, which is by length: neither the short nor the long ones.
    `taken` [S] says which members there are to choose from.
    """
    chosen = torch.zeros_like(solved, dtype=torch.bool)
    index, count = numbered(group_ids)
    for group in range(count):
        here = (index == group) & taken
        kinds = [torch.nonzero(here & solved)[:, 0], torch.nonzero(here & ~solved)[:, 0]]
        right = min(len(kinds[0]), keep - min(keep - keep // 2, len(kinds[1])))
        for members, n in ((kinds[0], right), (kinds[1], min(len(kinds[1]), keep - right))):
            if n:
                at = ((torch.arange(n, device=members.device) + 0.5) * len(members) / n).long()
                chosen[members[at]] = True
    return chosen


def step_entropy(step: StepRows) -> Tensor:
    """[S, T] of the policy as it is before this step, without gradient. Raises ValueError where there is none."""
    if step.entropy is None:
        raise ValueError('the step has no entropy: the objective\'s mark asks for it with requires=("step_entropy",)')
    return step.entropy


def top_tokens(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """[S, T] 1 on that share of all covered tokens of the step with the largest values, one at least; ties go to the
    earlier sequence and token."""
    covered = mask > 0
    n = max(1, int(share * int(covered.sum()) + 1e-6))
    order = torch.where(covered, values, float("-inf")).flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(mask.numel(), dtype=mask.dtype, device=mask.device)
    chosen[order[:n]] = 1.0
    return chosen.view_as(mask) * covered


def mean_of_chosen(values: Tensor, batch: SequenceBatch, chosen: Tensor) -> Tensor:
    """Mean of values [B, T] over the chosen [S, T] tokens of the step: this micro-batch's share of it."""
    here = batch.of(chosen) * batch.mask
    return (torch.where(here > 0, values, 0.0) * batch.weights[:, None]).sum() / chosen.sum().clamp(min=1)
