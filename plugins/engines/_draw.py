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
_NEVER = -1e4
"""Stands in for a log-probability of minus infinity, which times a probability of 0 would not be a number."""
_LARGE = 1024
"""Vocabulary from which on a token is looked up by blocks."""
_FEW = 128
"""Tokens ordered at first where the vocabulary is large: most nuclei are small."""
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
    logits = logits.float()
    size = logits.shape[-1]
    below = logits - logits.amax(-1, keepdim=True)
    p = torch.softmax(below, -1)
    certainty = -p.amax(-1).log_() - below.mean(-1) - math.log(size)
    if sampling.temperature == 0:
        zero = torch.zeros_like(certainty)
        return Drawn(logits.argmax(-1), zero, zero, certainty, ~certainty.isnan().any())
    if sampling.temperature != 1:
        below /= sampling.temperature
        p = torch.softmax(below, -1)
    top, total = p.amax(-1), None
    if sampling.min_p > 0 or sampling.top_p < 1 or 0 < sampling.top_k < size:
        p = truncated(p, sampling)
        total = p.sum(-1)
    tokens = _inverse(p, uniform)
    rest = ((1.0 if total is None else total) / top).log_()
    mean = torch.linalg.vecdot(p, below.clamp_(min=_NEVER))
    entropy = rest - (mean if total is None else mean / total)
    return Drawn(tokens[:, 0], below.gather(1, tokens)[:, 0] - rest, entropy, certainty, ~rest.isnan().any())


def _inverse(p: Tensor, uniform: Tensor) -> Tensor:
    """[B, 1] the first token below which lies more than that share [B] of the mass of p [B, V].

    A large vocabulary is searched by blocks, as adding it all up one by one in float64 takes longer than all the rest.
    """
    size = p.shape[-1]
    block = 1 if size < _LARGE else max(k for k in range(1, 257) if size % k == 0)
    if block == 1:
        cumulated = p.cumsum(-1, dtype=exact(p.device))
        return torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True).clamp_(max=size - 1)
    blocks = p.view(len(p), -1, block)
    cumulated = blocks.sum(-1, dtype=exact(p.device)).cumsum_(-1)
    target = uniform[:, None] * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, target, right=True).clamp_(max=size // block - 1)
    target -= torch.where(chosen > 0, cumulated.gather(1, (chosen - 1).clamp_(min=0)), 0.0)
    inner = blocks[torch.arange(len(p), device=p.device), chosen[:, 0]].cumsum(-1, dtype=target.dtype)
    return chosen * block + torch.searchsorted(inner, target, right=True).clamp_(max=block - 1)


def exact(device: torch.device) -> torch.dtype:
    """The type to add probabilities up in: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def truncated(p: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V] with 0 for what the sampling leaves out; the rest stays as it is.

    Of equally likely tokens the one with the lower index goes first, so what stays is the first few in one order.
    """
    size = p.shape[-1]
    most = min(sampling.top_k or size, size)
    if sampling.min_p > 0:
        p = p * (p >= min(sampling.min_p, 1.0) * p.amax(-1, keepdim=True))
    if most == size and sampling.top_p >= 1:
        return p
    ordered = _ordered(p, most, sampling.top_p)
    kept = torch.full_like(ordered[:, :1], most, dtype=torch.long)
    if sampling.top_p < 1:
        mass = ordered.cumsum(-1, dtype=exact(p.device))
        total = mass[:, -1:] if most < size else p.sum(-1, keepdim=True, dtype=mass.dtype)
        kept = (mass - ordered < sampling.top_p * total).sum(-1, keepdim=True).clamp_(min=1)
    last = ordered.gather(1, kept - 1)
    above, level = p > last, p == last
    left = kept - above.sum(-1, keepdim=True)
    if bool((level.sum(-1, keepdim=True) > left).any()):
        level &= level.cumsum(-1) <= left
    return p * (above | level)


def _ordered(p: Tensor, most: int, top_p: float) -> Tensor:
    """The largest p of each row, falling: `most`, or as many as surely hold `top_p` of the row's total."""
    size = p.shape[-1]
    if most == size:
        wanted = top_p * p.sum(-1, dtype=exact(p.device)) * (1 + 1e-6)
        for count in (_FEW, 16 * _FEW):
            if count < size // 2:
                ordered = p.topk(count).values
                if bool((ordered.sum(-1, dtype=wanted.dtype) >= wanted).all()):
                    return ordered
    return p.topk(most).values
