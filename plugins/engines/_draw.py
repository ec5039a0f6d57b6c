"""One token for each row, from its own stream of random numbers: what else is in the batch does not matter.

The number for step t of a seed is the t-th output of splitmix64 started there, so nothing has to be kept but the seed.

Source: Steele, Lea and Flood 2014 (splitmix64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strop.core.engine import Sampling

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_SALT = np.uint64(0xD1B54A32D192ED03)
UintArray = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step gave each row."""

    tokens: Tensor
    """[B]"""
    logps: Tensor
    """[B] of the token under the distribution it was drawn from"""
    entropy: Tensor
    """[B] of that distribution"""
    certainty: Tensor
    """[B] self-certainty of the untempered, untruncated one"""
    sound: Tensor
    """[] False when some row's logits are not numbers"""


def streams(seeds: Sequence[int]) -> UintArray:
    """[B] where each seed's stream starts; neighbouring seeds start far apart."""
    start: UintArray = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    return _mix(start ^ _SALT)


def uniforms(start: UintArray, first: int, count: int) -> Tensor:
    """[B, count] float64 in [0, 1), for steps first, first + 1, ..."""
    steps: UintArray = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    mixed = _mix(start[:, None] + steps * _GAMMA)
    return torch.from_numpy((mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52)


def _mix(z: UintArray) -> UintArray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Drawn:
    """A token for each row of logits [B, V] by inverse CDF at uniform [B]; the most likely one when greedy."""
    full = torch.log_softmax(logits.float(), -1)
    certainty = -math.log(full.shape[-1]) - full.mean(-1)
    if sampling.temperature == 0:
        tokens = full.argmax(-1)
        zero = torch.zeros_like(certainty)
        return Drawn(tokens, zero, zero, certainty, ~full.amax(-1).isnan().any())
    logps = full if sampling.temperature == 1 else torch.log_softmax(full / sampling.temperature, -1)
    if sampling.top_p < 1 or 0 < sampling.top_k < logps.shape[-1]:
        logps = _truncated(logps, sampling)
    probabilities = logps.exp()
    cumulated = probabilities.cumsum(-1, dtype=exact(logits.device))
    total = cumulated[:, -1:]
    tokens = torch.searchsorted(cumulated, uniform[:, None] * total, right=True).clamp_(max=logps.shape[-1] - 1)
    chosen = logps.gather(1, tokens)[:, 0]
    terms = probabilities * logps.clamp(min=-1e4)
    return Drawn(tokens[:, 0], chosen, -terms.sum(-1), certainty, ~total.isnan().any())


def exact(device: torch.device) -> torch.dtype:
    """The type to add probabilities up in: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _truncated(logps: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the `top_k` likeliest, then of the fewest of those that hold `top_p`; the rest -inf.

    Of equally likely tokens the one with the lower index goes first. `top_p` counts within what `top_k` left.
    """
    ordered, order = torch.sort(logps, dim=-1, descending=True, stable=True)
    if 0 < sampling.top_k < logps.shape[-1]:
        ordered = torch.log_softmax(ordered[:, : sampling.top_k], -1)
        order = order[:, : sampling.top_k]
    if sampling.top_p < 1:
        mass = ordered.double().exp()
        before = mass.cumsum(-1) - mass
        outside = before >= sampling.top_p
        outside[:, 0] = False
        ordered = torch.log_softmax(ordered.masked_fill(outside, float("-inf")), -1)
    return torch.full_like(logps, float("-inf")).scatter_(1, order, ordered)
