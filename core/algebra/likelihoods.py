"""Likelihood terms [B, T] of a token's log-probability: what an advantage is multiplied with besides it and the ratio.

The slope by the log-probability says how a term spreads its push: log pi pushes every token alike, pi the likely ones,
pi / (pi + gamma) the unlikely ones, but not the hopeless.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-5
"""1 - pi is taken to be no less than this, as Welleck et al. have it in their code."""


def by_own_probability(logps: Tensor) -> Tensor:
    """log pi times pi without its gradient: slope pi (dynamic fine-tuning, 2508.05629)."""
    return logps * logps.detach().exp()


def probability(logps: Tensor) -> Tensor:
    """pi: slope pi. A ratio to 1 where nobody knows how likely a demonstration was to its author."""
    return logps.exp()


def shaped(logps: Tensor, gamma: float) -> Tensor:
    """pi / (pi + gamma): slope gamma pi / (pi + gamma)^2, greatest at pi = gamma (LUFFY, 2504.14945)."""
    return torch.sigmoid(logps - math.log(gamma))


def unlikelihood(logps: Tensor) -> Tensor:
    """log(1 - pi): slope -pi / (1 - pi), which presses on what is likely (Welleck et al. 2019, 1908.04319)."""
    return torch.log(-torch.expm1(logps.clamp(max=-SMALLEST)))


def complement(log_ratios: Tensor, solved: Tensor, least: float = 1.0) -> Tensor:
    """log max((1 - q rho) / (1 - q), least) of a solve rate q [B, 1] below 1; the gradient passes the max unharmed.

    A sampler that solves a share q draws a wrong completion in 1 - q of cases: as rho q is how likely the policy makes
    the right ones, the rest is how likely it makes the wrong ones, over the sampler's.

    Source: NFT, Chen et al. 2025, 2505.18116, and its code (NVlabs/NFT).
    """
    implied = (1 - solved * log_ratios.exp()) / (1 - solved)
    through = implied + (implied.clamp(min=least) - implied).detach()
    return through.log()
