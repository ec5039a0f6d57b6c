"""Settings that change during a training, as functions of the share of its optimiser steps that are done, 0 to 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def linear(progress: float, start: float, end: float, over: float = 1.0) -> float:
    """From start to end during the first `over` of the training, and end from then on."""
    done = min(1.0, progress / over) if over > 0 else 1.0
    return start + (end - start) * done


def exponential(progress: float, start: float, end: float) -> float:
    """From start to end by equal factors: start (end / start)^progress; both above 0."""
    return start * math.exp(progress * math.log(end / start))


def piecewise(progress: float, knots: Sequence[tuple[float, float]]) -> float:
    """Straight between (share done, value) knots, in order of the share; the outer values hold beyond them."""
    for (a, low), (b, high) in itertools.pairwise(knots):
        if progress < b:
            return low if progress <= a else low + (high - low) * (progress - a) / (b - a)
    return knots[-1][1]


def v_shape(progress: float, least: float, most: float, turn: float) -> float:
    """From the middle down to least at `turn`, then up to most at the end (GRPO-D, 2503.16081)."""
    return piecewise(progress, [(0.0, (least + most) / 2), (turn, least), (1.0, most)])


def decline(progress: float, kept: float = 0.8, slow: float = 2.0, fast: float = 3.0) -> float:
    """From 1 slowly towards `kept` in the first half, and fast towards 0 in the second.

    Source: EPO, Xu et al. 2025, 2509.22576, in its code (WujiangXu/EPO, `dp_actor.py`); there is a jump in the middle.
    """
    half = 2 * progress
    if half <= 1:
        return 1 - (1 - kept) * (1 - math.exp(-slow * half))
    return kept * math.exp(-fast * (half - 1))


def steered(share: float, slope: float, excess: float, rate: float, entropy_rate: float) -> float:
    """The share of imitation after a step: along the slope of the utility by it, and up where the policy's entropy
    exceeds its target; held within 0 and 1 (AMFT, 2508.06944)."""
    return min(1.0, max(0.0, share + rate * slope + entropy_rate * excess))
