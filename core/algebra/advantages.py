"""Advantages [S] of whole sequences from rewards [S]: a baseline taken off, and what the rest is divided by.

A reward that is NaN (the rollout could not be scored) is left out of every statistic and has advantage 0. A group of
one gives 0 wherever the group itself is the baseline.

Source: verl's `compute_*_advantage` and TRL's GRPOTrainer, which differ in ddof and epsilon; the papers stand at each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.groups import group_max, group_mean, group_size, group_std, group_sum, one_of_each
from strop.core.algebra.lazy import torch
from strop.core.algebra.strata import within_groups

if TYPE_CHECKING:
    from torch import Tensor


def plain(rewards: Tensor) -> Tensor:
    """The reward itself (Williams 1992)."""
    return rewards.nan_to_num()


def centred(rewards: Tensor, group_ids: Tensor, shift: float = 0.0) -> Tensor:
    """r - (mean of the group + shift). Shift 0: Dr. GRPO (2503.20783); below 0: AsymRE (2506.20520)."""
    return (rewards - group_mean(rewards, group_ids) - shift).nan_to_num()


def left_one_out(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """r minus the mean of the others in the group (Ahmadian et al. 2024, 2402.14740)."""
    n = group_size(rewards, group_ids)
    return centred(rewards, group_ids) * torch.where(n > 1, n / (n - 1).clamp(min=1), 0.0)


def standardised(rewards: Tensor, group_ids: Tensor, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) within the group (Shao et al. 2024, 2402.03300); epsilon and ddof as TRL has them."""
    return centred(rewards, group_ids) / (group_std(rewards, group_ids, ddof) + eps)


def batch_scaled(rewards: Tensor, group_ids: Tensor, eps: float = 1e-4) -> Tensor:
    """r minus the group's mean, over the standard deviation of all rewards (TRL `scale_rewards="batch"`)."""
    known = rewards[~rewards.isnan()]
    std = known.std() if len(known) > 1 else rewards.new_zeros(())
    return centred(rewards, group_ids) / (std + eps)


def length_weighted(rewards: Tensor, group_ids: Tensor, lengths: Tensor) -> Tensor:
    """r minus the group's mean weighted by length, the baseline of least variance (OPO, 2505.23585)."""
    known = torch.where(rewards.isnan(), rewards, lengths)
    return (rewards - group_sum(rewards * known, group_ids) / group_sum(known, group_ids)).nan_to_num()


def softened(rewards: Tensor, group_ids: Tensor, tau: float) -> Tensor:
    """r - tau log mean exp(r / tau) within the group (OPMD, Trinity-RFT)."""
    top = group_max(rewards, group_ids)
    mass = group_mean(((rewards - top) / tau).exp(), group_ids)
    return (rewards - top - tau * mass.log()).nan_to_num()


def best_only(rewards: Tensor, group_ids: Tensor, eps: float = 1e-6) -> Tensor:
    """(best - second best) / (std + eps) for the best of a group and 0 for the rest; ties give 0 (verl, pass@k)."""
    top = group_max(rewards, group_ids)
    at_top = (rewards == top).to(rewards.dtype)
    below = group_max(torch.where(rewards < top, rewards, float("nan")), group_ids)
    alone = (group_sum(at_top, group_ids) == 1) & below.isfinite()
    gap = torch.where(alone, top - below, 0.0) / (group_std(rewards, group_ids) + eps)
    return (at_top * gap).nan_to_num()


def beta_scaled(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(r - p) / Beta(p; a, b), the Beta fitted to the solve rates p of the step's groups, for rewards 0 and 1.

    a = 1 + m k / 3, b = 1 + (1 - m) k / 3, both at least 1, with k = m (1 - m) / v - 1 from mean m and unbiased
    variance v of p; 1 / density is at most 1e6. One group, or groups of one rate, have no variance: then a = b = 1.

    Source: BNPO, Xiao et al. 2025, 2506.02864, and its code (changyi7231/BNPO, `recipe/bnpo`).
    """
    p = group_mean(rewards, group_ids)
    rates = p[one_of_each(group_ids)]
    rates = rates[~rates.isnan()]
    mean = rates.mean() if len(rates) else p.new_tensor(0.5)
    variance = rates.var() if len(rates) > 1 else p.new_zeros(())
    kappa = torch.where(variance > 0, mean * (1 - mean) / variance.clamp(min=1e-12) - 1, 0.0)
    a, b = (1 + mean * kappa / 3).clamp(min=1), (1 + (1 - mean) * kappa / 3).clamp(min=1)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    log_density = torch.special.xlogy(a - 1, p) + torch.special.xlogy(b - 1, 1 - p) - log_beta
    weights: Tensor = (-log_density).exp().clamp(max=1e6)
    return ((rewards - p) * weights).nan_to_num()


def standardised_in_strata(
    rewards: Tensor, group_ids: Tensor, strata: Tensor, alpha: float, eps: float = 1e-6
) -> Tensor:
    """alpha times the value standardised inside its stratum of the group, and 1 - alpha times that inside the group.

    Standard deviations with divisor n; a stratum of one gives 0 (Stratified GRPO).
    """
    local = standardised(rewards, within_groups(group_ids, strata), ddof=0, eps=eps)
    return alpha * local + (1 - alpha) * standardised(rewards, group_ids, ddof=0, eps=eps)
