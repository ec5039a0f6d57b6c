"""Which examples of earlier rounds are trained on beside this round's: a share of all, recent ones likelier.

A draw without replacement in which an example t rounds old has weight t^-recency; a group is drawn whole.

Source: the recency of power-law rehearsal (P proportional to t^-d); drawing by keys u^(1/w) from Efraimidis and
Spirakis 2006.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from strop.core.trainer.config import Replay
from strop.core.units import units


def replayed(rounds: Sequence[int], groups: Sequence[int | None], now: int, config: Replay, seed: int) -> list[int]:
    """Indices, rising, of the examples to train on; `rounds` and `groups` are those of each example.

    All of round `now`, and of earlier ones as many as make up the share, or all there are. Where this round has none,
    nothing is drawn: there is nothing new to learn beside the old.
    """
    whole = units(None if group is None else (made, group) for made, group in zip(rounds, groups, strict=True))
    fresh = [i for i, made in enumerate(rounds) if made == now]
    rng = random.Random(seed)
    drawn: list[tuple[float, list[int]]] = []
    for members in whole:
        if (age := now - rounds[members[0]]) != 0:
            drawn.append((math.log(1.0 - rng.random()) * age**config.recency, members))
    wanted = round(len(fresh) * config.share / (1 - config.share))
    chosen: list[int] = []
    for _, members in sorted(drawn, key=lambda unit: -unit[0]):
        if len(chosen) >= wanted:
            break
        chosen += members
    return sorted([*fresh, *chosen])
