"""Rewards and weights put through a function: by length, by a threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def cut_off(rewards: Tensor, lengths: Tensor, limit: float) -> Tensor:
    """0 where a completion is longer than the limit, in tokens (DLER, 2510.15110); NaN stays NaN."""
    return torch.where((lengths > limit) & ~rewards.isnan(), 0.0, rewards)


def beyond(probabilities: Tensor, threshold: float) -> Tensor:
    """How far each lies on the way from the threshold to 1: 0 up to it, 1 at 1 (OREAL, 2502.06781)."""
    return ((probabilities - threshold) / (1 - threshold)).clamp(0, 1)
