"""Wall and CPU seconds of alternatives that take turns; the minimum of each counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds, the least of all repetitions."""

    wall_s: float
    cpu_s: float
    """Of all threads of the process."""


def timed(work: Callable[[], object]) -> Cost:
    """One repetition."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(alternatives: Mapping[str, Callable[[], object]], repetitions: int, warm: int = 1) -> dict[str, Cost]:
    """Each alternative after the other, over and over."""
    found: dict[str, list[Cost]] = {name: [] for name in alternatives}
    for repetition in range(warm + repetitions):
        for name, work in alternatives.items():
            cost = timed(work)
            if repetition >= warm:
                found[name].append(cost)
    return {
        name: Cost(min(cost.wall_s for cost in costs), min(cost.cpu_s for cost in costs))
        for name, costs in found.items()
    }
