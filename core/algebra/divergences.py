"""Estimates a token of the divergence from another policy, of d = log pi - log pi_other at the sampled token.

On the policy's own samples: k2 in the loss, or detached k1 in the reward, has the gradient of KL(pi || other); k3 in
the loss that of KL(other || pi); k3 times a differentiable ratio (TRL's default) that of KL(pi || other) again.

Source: Schulman 2020, "Approximating KL Divergence"; the gradients checked in tests on a small softmax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def k1(logps: Tensor, others: Tensor) -> Tensor:
    """d: no bias, much variance."""
    return logps - others


def k2(logps: Tensor, others: Tensor) -> Tensor:
    """d^2 / 2."""
    return (logps - others) ** 2 / 2


def k3(logps: Tensor, others: Tensor) -> Tensor:
    """exp(-d) + d - 1: no bias, never below 0."""
    d = logps - others
    return torch.exp(-d) + d - 1
