"""PPO's clipped surrogate of single tokens, and the settings of those who train on it.

Source: Schulman et al. 2017, 1707.06347, eq. 7; Yu et al. 2025, 2503.14476 (clip-higher); Ye et al. 2020, 1912.09729
(dual clip).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from strop.core.algebra.ratios import LARGEST, clipped, log_ratio
from strop.core.plugin import Config

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import SequenceBatch


class Clip(Config):
    """Bounds of a probability ratio."""

    low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio's gradient ends below 1 - low, where the advantage is negative."""
    high: Annotated[float, Field(gt=0)] = 0.2
    """And above 1 + high, where it is positive."""


class ClipHigher(Clip):
    """Bounds that let an unlikely token grow more than it may shrink."""

    high: Annotated[float, Field(gt=0)] = 0.28
    """And above 1 + high, where it is positive: unlikely tokens may grow more than they may shrink."""


class DualClip(ClipHigher):
    """And a bound on what a bad token can weigh."""

    cap: Annotated[float | None, Field(gt=1)] = 10.0
    """Where the advantage is negative the loss of a token is at most cap times its size; null = no cap."""


def surrogate(config: Clip, advantages: Tensor, batch: SequenceBatch, most: float = LARGEST) -> Tensor:
    """[B, T] -min(A rho, A clip(rho, 1 - low, 1 + high)) of advantages [B, 1] or [B, T], rho = pi / pi_behaviour."""
    ratio = log_ratio(batch.logps, batch.behaviour_logps, batch.mask, most).exp()
    return clipped(advantages, ratio, config.low, config.high, config.cap if isinstance(config, DualClip) else None)
