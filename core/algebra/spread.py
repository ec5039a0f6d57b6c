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

    d_t = r_t + gamma V_t+1 - V_t, A_t = d_t + gamma lam A_t+1, returns A + V. Tokens that are not covered are passed
    over: the next token is the next covered one. log2 T tensor operations, so that long completions cost no loop.

    Source: Schulman et al. 2015, 1506.02438, eq. 16.
    """
    order = (mask <= 0).int().argsort(dim=1, stable=True)  # what is covered moves to the front
    on = mask.gather(1, order) > 0
    ahead, known = (torch.where(on, x.gather(1, order), 0.0) for x in (rewards, values))
    advantages = _decayed_sums(ahead + gamma * _later(known, 1) - known, gamma * lam)
    advantages = torch.zeros_like(values).scatter(1, order, torch.where(on, advantages, 0.0))
    return advantages, torch.where(mask > 0, advantages + values, 0.0)


def _later(values: Tensor, by: int) -> Tensor:
    """[S, T] what stands that many places on; 0 beyond the end."""
    return torch.cat([values[:, by:], torch.zeros_like(values[:, :by])], 1)


def _decayed_sums(values: Tensor, decay: float) -> Tensor:
    """[S, T] x_t + decay x_t+1 + decay^2 x_t+2 + ..., over twice as many terms each time."""
    terms = 1
    while terms < values.shape[1]:
        values = values + decay**terms * _later(values, terms)
        terms *= 2
    return values


def whitened(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """[S, T] less the mean of all covered tokens, over the root of their unbiased variance; 0 where none varies."""
    n = mask.sum()
    mean = (values * mask).sum() / n.clamp(min=1)
    variance = (((values - mean) ** 2) * mask).sum() / (n - 1).clamp(min=1)
    return (values - mean) * torch.rsqrt(variance + eps) * mask
