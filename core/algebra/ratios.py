"""Probability ratios between the policy in training and another, at three levels, and what bounds them.

A ratio is given as its logarithm [B, T]; `exp` of it comes last, so that clamps act before an overflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 20.0
"""Log-ratios are clamped to this before exp, as verl does."""


def log_ratio(logps: Tensor, others: Tensor, mask: Tensor, most: float = LARGEST) -> Tensor:
    """[B, T] of single tokens, within `most` on either side."""
    return ((logps - others) * mask).clamp(-most, most)


def sequence_log_ratio(log_ratios: Tensor, mask: Tensor, most: float = LARGEST) -> Tensor:
    """[B, 1] of the whole completion: the sum over its tokens."""
    return (log_ratios * mask).sum(1, keepdim=True).clamp(-most, most)


def geometric_log_ratio(log_ratios: Tensor, mask: Tensor) -> Tensor:
    """[B, 1] mean over the tokens: the logarithm of the geometric mean (GSPO: Zheng et al. 2025, 2507.18071)."""
    return (log_ratios * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def straight_through(level: Tensor, logps: Tensor) -> Tensor:
    """`level` [B, 1] in value, with the gradient of each token's own log-probability [B, T] (GSPO-token)."""
    return level.detach() + logps - logps.detach()


def clipped(advantages: Tensor, ratios: Tensor, low: float, high: float, cap: float | None = None) -> Tensor:
    """[B, T] PPO's loss -min(A r, A clip(r, 1 - low, 1 + high)); below A = 0 at most -cap A ("dual clip").

    Source: Schulman et al. 2017, 1707.06347, eq. 7; Ye et al. 2020, 1912.09729 (cap); Yu et al. 2025, 2503.14476
    (high apart from low).
    """
    loss = torch.maximum(-advantages * ratios, -advantages * ratios.clamp(1 - low, 1 + high))
    if cap is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -cap * advantages), loss)


def not_clipped(advantages: Tensor, ratios: Tensor, low: float, high: float) -> Tensor:
    """[B, T] 1 where PPO's clip leaves the gradient: the same rule as a mask ("one-side")."""
    off = ((advantages > 0) & (ratios > 1 + high)) | ((advantages < 0) & (ratios < 1 - low))
    return (~off).to(ratios.dtype).detach()


def within(ratios: Tensor, low: float, high: float) -> Tensor:
    """[B, T] 1 where the ratio lies in [1 - low, 1 + high], whatever the advantage ("two-side")."""
    return ((ratios >= 1 - low) & (ratios <= 1 + high)).to(ratios.dtype).detach()
