"""New problems where the policy fails: the task's generator, with the budget split over categories by failure share.

Source: Liang et al. 2025, 2506.08989 (SwS), steps 1 and 3. Changed: failure is 1 - pass rate over the rollouts stored
so far, not a falling trend over epochs; problems come from the task's own generator with known answers, not from a
language model, so there is nothing to label or judge.
"""

from __future__ import annotations

from pydantic import PositiveInt

from strop.core.plugin import Config, PassRate, Task, stage
from strop.core.problems import problem_key
from strop.core.seeds import derive
from strop.storage.errors import PluginError
from strop.storage.tables import Problem

Cell = tuple[str, str | None, float | None]


class Weakness(Config):
    """How many problems."""

    problems: PositiveInt
    """New problems a round, at most."""
    parents: PositiveInt = 3
    """Failed problems named as parents of each new one: those solved least often."""


@stage("synthesize")
def weakness(
    config: Weakness,
    *,
    problems: list[Problem],
    pass_rates: dict[int, PassRate],
    heldout_keys: frozenset[str],
    tasks: dict[str, Task],
    seed: int,
) -> list[Problem]:
    """Problems in order of task, category and level. Raises PluginError when a weak task cannot make any."""
    cells: dict[Cell, list[tuple[float, int]]] = {}
    for problem in problems:
        rate = pass_rates.get(problem.problem_id)
        if rate is not None and rate.n:
            cell = (problem.task, problem.category, problem.level)
            cells.setdefault(cell, []).append((rate.rate, problem.problem_id))
    failure = {cell: sum(1 - rate for rate, _ in found) / len(found) for cell, found in cells.items()}
    known = {p.problem_key for p in problems} | heldout_keys
    made: list[Problem] = []
    for cell, count in budget(failure, config.problems).items():
        task, category, level = cell
        more = tasks[task].more
        if more is None:
            raise PluginError(f"`synthesize: weakness` needs a task with a generator; {task!r} has none: leave it out")
        parents = [identity for rate, identity in sorted(cells[cell]) if rate < 1][: config.parents]
        for problem in more(category, level, count, derive(seed, *cell)):
            new = _child(problem, task, parents)
            if new.problem_key not in known:
                known.add(new.problem_key)
                made.append(new)
    return made


def budget(failure: dict[Cell, float], total: int) -> dict[Cell, int]:
    """Whole numbers in proportion to the failures that sum to `total`, by largest remainder; none where none fails."""
    cells = sorted(failure, key=repr)
    mass = sum(failure.values())
    if mass <= 0:
        return {}
    exact = {cell: total * failure[cell] / mass for cell in cells}
    counts = {cell: int(exact[cell]) for cell in cells}
    left = total - sum(counts.values())
    for cell in sorted(cells, key=lambda c: counts[c] - exact[c])[:left]:
        counts[cell] += 1
    return {cell: count for cell, count in counts.items() if count}


def _child(problem: Problem, task: str, parents: list[int]) -> Problem:
    import dataclasses

    named = dataclasses.replace(problem, task=task, parents=parents, split="train")
    return dataclasses.replace(named, problem_key=problem_key(named))
