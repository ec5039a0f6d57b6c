"""What a critic's values of tokens are held against: its loss, and how much of the returns it explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def clipped_squares(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """[B, T] half the larger of (V - R)^2 and (clip(V, old - clip, old + clip) - R)^2; null = the first alone.

    A value that has moved further than `clip` towards its return gets no gradient, one that has moved away does.

    Source: OpenAI's PPO, as Luong et al. 2024, 2401.08967 (ReFT) and verl have it.
    """
    loss = (values - returns) ** 2
    if clip is not None:
        near = torch.maximum(torch.minimum(values, old + clip), old - clip)
        loss = torch.maximum(loss, (near - returns) ** 2)
    return loss / 2


def explained(residuals: Tensor, part: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """A micro-batch's share of 1 - sum (R - V)^2 / sum (R - mean R)^2 over the step's tokens; 0 where none varies.

    `residuals` and `part` [B, T] are R - V and the mask of the micro-batch, `returns` and `mask` [S, T] the step's.
    1 = every return is foretold, 0 = no better than their mean, below 0 = worse.
    """
    n = mask.sum().clamp(min=1)
    around = (((returns - (returns * mask).sum() / n) ** 2) * mask).sum()
    share: Tensor = part.sum() / n - (residuals**2 * part).sum() / around
    return torch.where(around > 0, share, 0.0)
