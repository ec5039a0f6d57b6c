"""Values of tokens: from one a sequence to one a token, returns, generalised advantages, baselines, whitening."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.groups import group_size, group_sum
from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from strop.core.trainer.objective import StepRows


def token_scores(step: StepRows) -> Tensor:
    """[S, T] what a reward model makes of each token. Raises ValueError where there is none."""
    if step.token_scores is None:
        raise ValueError('the step has no token scores: the objective\'s mark asks for them with "token_scores"')
    return step.token_scores


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


def left_one_out_tokens(rewards: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """[S, T] token rewards [S, T] times n / (n - 1), less the sum of the group's n mean rewards over n - 1.

    So each completion's mean is taken less the mean of the others'. A sequence whose mask covers nothing is not one of
    the n; a group of one gives 0.

    Source: Cui et al. 2025, 2502.01456 (PRIME), eq. 5, and its code.
    """
    covered = mask.sum(1)
    means = torch.where(covered > 0, (rewards * mask).sum(1) / covered, float("nan"))
    n = group_size(means, group_ids)
    others = torch.where(n > 1, 1 / (n - 1).clamp(min=1), 0.0)
    return (rewards * (n * others)[:, None] - (group_sum(means, group_ids) * others)[:, None]) * mask


def running_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[S, T] mean of the values [S, T] of the covered tokens up to each; 0 before the first."""
    return (values * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)


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
