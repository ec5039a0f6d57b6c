"""From one value a sequence to one a token: returns, generalised advantage estimation, whitening."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def at_last(values: Tensor, mask: Tensor) -> Tensor:
    """[S, T] the value [S] at the last covered token of each sequence, 0 elsewhere."""
    left = mask.flip(1).cumsum(1).flip(1)
    return values[:, None] * mask * (left == 1)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """[S, T] discounted sum of token rewards [S, T] from each covered token on."""
    running, out = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        on = mask[:, t] > 0
        running = torch.where(on, rewards[:, t] + gamma * running, running)
        out[:, t] = torch.where(on, running, 0.0)
    return out


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [S, T] each, of token rewards and values; after the last token the value is 0.

    Source: Schulman et al. 2015, 1506.02438, eq. 16; tokens that are not covered are passed over.
    """
    after, running = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        on = mask[:, t] > 0
        delta = rewards[:, t] + gamma * after - values[:, t]
        running = torch.where(on, delta + gamma * lam * running, running)
        after = torch.where(on, values[:, t], after)
        advantages[:, t] = torch.where(on, running, 0.0)
    return advantages, (advantages + values) * mask


def whitened(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """[S, T] less the mean of all covered tokens, over the root of their unbiased variance; 0 where none varies."""
    n = mask.sum()
    mean = (values * mask).sum() / n.clamp(min=1)
    variance = (((values - mean) ** 2) * mask).sum() / (n - 1).clamp(min=1)
    return (values - mean) * torch.rsqrt(variance + eps) * mask
