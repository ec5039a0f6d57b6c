"""Parts of a group: which completions of a prompt are of one kind, and how many kinds there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.groups import group_mean, group_size, one_of_each
from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import StepRows


def strata_of(step: StepRows) -> Tensor:
    """[S] int64. Raises ValueError where the examples have none."""
    if step.strata is None or bool((step.strata < 0).any()):
        raise ValueError('the batch has no strata: the objective\'s mark asks for them with needs=("stratum",)')
    return step.strata


def within_groups(group_ids: Tensor, strata: Tensor) -> Tensor:
    """[S] ids of (group, stratum): the strata of two groups are never the same."""
    _, inside = torch.unique(torch.stack([group_ids, strata], 1), dim=0, return_inverse=True)
    return inside


def strata_entropy(rewards: Tensor, group_ids: Tensor, strata: Tensor) -> Tensor:
    """[S] entropy in nats of the shares that the strata have of the group of each; 0 where nothing of it was scored."""
    n, alike = group_size(rewards, group_ids), group_size(rewards, within_groups(group_ids, strata))
    surprise = torch.where(rewards.isnan(), rewards, -(alike / n).log())
    return group_mean(surprise, group_ids).nan_to_num()


def standardised_means(rewards: Tensor, group_ids: Tensor, eps: float = 1e-6) -> Tensor:
    """[S] the mean reward of the group of each, standardised (divisor n - 1) over the step's groups.

    One group alone, or groups of one mean, give 0; so does a sequence without a reward.
    """
    means = group_mean(rewards, group_ids)
    each = means[one_of_each(group_ids)]
    each = each[~each.isnan()]
    if len(each) < 2:
        return torch.zeros_like(rewards)
    scaled = (means - each.mean()) / (each.std() + eps)
    return torch.where(rewards.isnan(), 0.0, scaled)
