"""New problems of the kinds the policy fails at, as many of each as its share of the failures.

Source: SwS, Liang et al. 2025, 2506.08989: failures found per category, budget split by failure share. What differs:
a problem has failed when its pass rate over the run is below `threshold` (SwS also asks that it was falling from epoch
to epoch); new problems come from the task's own generator with their references, not from a language model that
recombines concepts, so no judging, majority labels or difficulty filter is needed.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.plugin import Config, PassRate, Task, stage
from strop.core.problems import key_of, problem_key
from strop.core.seeds import derive
from strop.storage.errors import PluginError, did_you_mean
from strop.storage.tables import Problem

_TRIES = 4
"""Draws from a generator before a kind counts as used up."""

Kind = tuple[str, str | None, float | None]
"""Task, category, level."""


class Weakness(Config):
    """How many problems, and what a failure is."""

    problems: PositiveInt
    """New problems a round, in all; fewer where a generator has no more."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A problem whose pass rate is below this has failed."""
    parents: PositiveInt = 4
    """Most failed problems a new one names as its parents, those of lowest pass rate."""


@stage("synthesize")
def weakness(
    config: Weakness,
    *,
    problems: list[Problem],
    heldout_keys: frozenset[str],
    pass_rates: dict[int, PassRate],
    tasks: dict[str, Task],
    seed: int,
) -> list[Problem]:
    """New problems by kind; none when no problem failed.

    Raises PluginError when a task with failures has no generator.
    """
    failed: dict[Kind, list[Problem]] = defaultdict(list)
    sampled: dict[Kind, int] = defaultdict(int)
    for problem in problems:
        rate = pass_rates.get(problem.problem_id)
        if rate is not None and rate.n:
            kind = (problem.task, problem.category, problem.level)
            sampled[kind] += 1
            if rate.rate < config.threshold:
                failed[kind].append(problem)
    kinds = sorted(failed, key=lambda k: (k[0], k[1] or "", k[2] if k[2] is not None else -1.0))
    shares = split(config.problems, [len(failed[kind]) / sampled[kind] for kind in kinds])
    taken = {*heldout_keys, *(key_of(p) for p in problems)}
    found: list[Problem] = []
    for kind, count in zip(kinds, shares, strict=True):
        worst = sorted(failed[kind], key=lambda p: (pass_rates[p.problem_id].rate, key_of(p)))
        parents = [p.problem_id for p in worst[: config.parents]]
        found += _made(kind, count, _generator(kind[0], tasks), taken, parents, seed)
    return found


def split(total: int, weights: list[float]) -> list[int]:
    """`total` in whole parts in proportion to the weights, by largest remainder; ties go to the earlier part."""
    mass = sum(weights)
    if not mass:
        return [0] * len(weights)
    exact = [total * weight / mass for weight in weights]
    parts = [int(e) for e in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _generator(label: str, tasks: dict[str, Task]) -> Task:
    if label not in tasks:
        raise PluginError(f"no task {label!r} in the recipe{did_you_mean(label, tasks)}")
    if tasks[label].more is None:
        raise PluginError(
            f"weakness cannot make problems for the task {label!r}: it has no generator. Leave `synthesize` out, "
            "or use a task that has one (chain_arithmetic, reasoning_gym)"
        )
    return tasks[label]


def _made(kind: Kind, count: int, task: Task, taken: set[str], parents: list[int], seed: int) -> list[Problem]:
    """Up to `count` problems whose keys are not in `taken`; their keys are added to it."""
    label, category, level = kind
    assert task.more is not None
    found: list[Problem] = []
    for attempt in range(_TRIES):
        if len(found) == count:
            break
        drawn = task.more(category, level, count - len(found), derive(seed, "weakness", *kind, attempt))
        for problem in drawn[: count - len(found)]:
            made = dataclasses.replace(problem, task=label, split="train", parents=parents)
            key = problem_key(made)
            if key not in taken:
                taken.add(key)
                found.append(dataclasses.replace(made, problem_key=key))
    return found
