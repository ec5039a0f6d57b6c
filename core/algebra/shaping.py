"""Rewards changed before any baseline: by length, by what other completions earned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def cut_off(rewards: Tensor, lengths: Tensor, limit: float) -> Tensor:
    """0 where a completion is longer than the limit, in tokens (DLER, 2510.15110); NaN stays NaN."""
    return torch.where((lengths > limit) & ~rewards.isnan(), 0.0, rewards)
