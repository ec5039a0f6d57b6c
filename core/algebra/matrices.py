"""Completions of one prompt under several prompts: a square matrix of scores a group, told apart along both ways.

Entry (i, j) is completion j behind prompt i, its stratum i * n + j; completion j was written behind prompt j, so that
the diagonal is what belongs together. The members of a matrix may lie in several micro-batches: its loss goes by the
scores of the whole step as the policy is before it, and each member adds its own slope.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from strop.core.algebra.groups import numbered
from strop.core.algebra.lazy import torch
from strop.core.algebra.strata import strata_of

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import StepRows


def places(step: StepRows) -> list[Tensor]:
    """A matrix [n, n] of each group, which of the step's sequences is where.

    Raises ValueError where a group is not a whole matrix.
    """
    strata = strata_of(step)
    index, count = numbered(step.group_ids)
    found = []
    for group in range(count):
        members = torch.nonzero(index == group)[:, 0]
        n = math.isqrt(len(members))
        order = strata[members].argsort()
        if n * n != len(members) or strata[members][order].tolist() != list(range(n * n)):
            raise ValueError(
                f"group {int(step.group_ids[members[0]])} has strata {sorted(strata[members].tolist())}: each of n "
                "completions must stand behind each of n prompts once, as `build: crossed` makes them"
            )
        found.append(members[order].view(n, n))
    return found


def matching(scores: Tensor) -> Tensor:
    """Of a matrix [n, n]: half the cross-entropy of each row with its diagonal entry, and half that of each column."""
    targets = torch.arange(len(scores), device=scores.device)
    rows = torch.nn.functional.cross_entropy(scores, targets)
    return (rows + torch.nn.functional.cross_entropy(scores.T, targets)) / 2


def slopes(scores: Tensor) -> Tensor:
    """[n, n] the slope of `matching` by each entry."""
    apart = (scores.softmax(1) + scores.softmax(0)) / 2 - torch.eye(len(scores), dtype=scores.dtype).to(scores.device)
    return apart / len(scores)
