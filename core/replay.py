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


def replayed(rounds: Sequence[int], groups: Sequence[int | None], now: int, config: Replay, seed: int) -> list[int]:
    """Indices, rising, of the examples to train on; `rounds` and `groups` are those of each example.

    All of round `now`, and of earlier ones as many as make up the share, or all there are. Where this round has none,
    nothing is drawn: there is nothing new to learn beside the old.
    """
    units: dict[tuple[object, ...], list[int]] = {}
    for index, (made, group) in enumerate(zip(rounds, groups, strict=True)):
        units.setdefault((made, "group", group) if group is not None else (made, index), []).append(index)
    fresh = sorted(i for key, members in units.items() if key[0] == now for i in members)
    rng = random.Random(seed)
    drawn: list[tuple[float, list[int]]] = []
    for key, members in units.items():
        if key[0] != now:
            age = now - rounds[members[0]]
            drawn.append((math.log(1.0 - rng.random()) * age**config.recency, members))
    wanted = round(len(fresh) * config.share / (1 - config.share))
    chosen: list[int] = []
    for _, members in sorted(drawn, key=lambda unit: -unit[0]):
        if len(chosen) >= wanted:
            break
        chosen += members
    return sorted([*fresh, *chosen])
