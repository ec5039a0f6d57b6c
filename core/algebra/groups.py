"""Statistics of groups: for each of S sequences, something of the group it belongs to.

A value that is NaN (a rollout that could not be scored) counts for nothing. A sequence of no group (id -1) is a group
of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def numbered(group_ids: Tensor) -> tuple[Tensor, int]:
    """[S] groups counted from 0, and how many there are."""
    alone = group_ids < 0
    ids = torch.where(alone, -1 - torch.arange(len(group_ids), device=group_ids.device), group_ids)
    _, found = torch.unique(ids, return_inverse=True)
    return found, int(found.max()) + 1 if len(found) else 0


def group_sum(values: Tensor, group_ids: Tensor) -> Tensor:
    """[S] sum over the group of each."""
    index, count = numbered(group_ids)
    return values.new_zeros(count).index_add(0, index, values.nan_to_num())[index]


def group_size(values: Tensor, group_ids: Tensor) -> Tensor:
    """[S] how many values the group of each has."""
    return group_sum((~values.isnan()).to(values.dtype), group_ids)


def group_mean(values: Tensor, group_ids: Tensor) -> Tensor:
    """[S] NaN where a group has no value."""
    return group_sum(values, group_ids) / group_size(values, group_ids)


def group_std(values: Tensor, group_ids: Tensor, ddof: int = 1) -> Tensor:
    """[S] standard deviation with divisor n - ddof; 0 where a group has ddof values or fewer."""
    squares = group_sum((values - group_mean(values, group_ids)) ** 2, group_ids)
    freedom = group_size(values, group_ids) - ddof
    return torch.where(freedom > 0, squares / freedom.clamp(min=1), 0.0).sqrt()


def group_max(values: Tensor, group_ids: Tensor) -> Tensor:
    """[S] -inf where a group has no value."""
    index, count = numbered(group_ids)
    low = torch.where(values.isnan(), float("-inf"), values)
    return values.new_full((count,), float("-inf")).scatter_reduce(0, index, low, "amax")[index]


def one_of_each(group_ids: Tensor) -> Tensor:
    """[G] the first sequence of each group: picks a value a group from a value a sequence."""
    index, count = numbered(group_ids)
    places = torch.arange(len(index), device=index.device)
    return places.new_full((count,), len(index)).scatter_reduce(0, index, places, "amin")
