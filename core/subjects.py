"""Rows may only speak of what their plugin was handed: a wrong id would tie a score, an example or a new problem to
something else, or let a held-out problem into training, and nobody would notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from strop.core.problems import content_key
from strop.core.registry import Plugin
from strop.storage.errors import PluginError, did_you_mean
from strop.storage.tables import Decision, Example, Plan, Problem, Rollout, Row, Score, TokenLogps

SPLITS = ("train", "heldout")


@dataclass(frozen=True, slots=True)
class Given:
    """What a plugin was handed. None = it was not handed any, and what it says of them is not checked."""

    problems: Mapping[int, str] | None = None
    """Problem id -> label of its task."""
    rollouts: Mapping[int, int] | None = None
    """Rollout id -> problem id."""
    tasks: tuple[str, ...] = ()
    """Labels of the recipe's tasks; for stages that make problems."""
    pool: frozenset[str] = frozenset()
    """`content_key` of every problem there is, held-out ones included; for stages that make problems."""


def check_subjects(rows: Sequence[Row], given: Given, made: Mapping[int, int], plugin: Plugin) -> list[Row]:
    """The rows; a synthesized problem that is there already comes back with status 'rejected'.

    `made` holds the problems of the rollouts in these rows, by id. Raises PluginError.
    """
    who = f"{plugin.stage} plugin {plugin.name!r}"
    for row in rows:
        kind = type(row).__name__
        for problem_id in _problems(row):
            if given.problems is not None and problem_id not in given.problems:
                raise PluginError(
                    f"{who} returned a {kind} for problem {problem_id}, which it was not handed; "
                    "use the ids of `problems` (`plan` in a generator)"
                )
        if "state" in plugin.mark.handles or (given.rollouts is None and not made):
            continue  # with state, a builder may bring back rollouts of earlier rounds
        for rollout_id in _rollouts(row):
            if rollout_id not in made and rollout_id not in (given.rollouts or ()):
                raise PluginError(
                    f"{who} returned a {kind} for rollout {rollout_id}, which it was not handed; "
                    "use `rollout_id` of `rollouts`"
                )
    if plugin.stage == "select":
        _refuse_repeats(rows, who)
    if plugin.stage == "task":
        _refuse_splits(rows, who)
    return _admitted(rows, given, who) if plugin.stage == "synthesize" else list(rows)


def _problems(row: Row) -> Iterator[int]:
    if isinstance(row, Plan | Rollout | Example):
        yield from () if row.problem_id is None else (row.problem_id,)
    elif isinstance(row, Score) and row.subject_kind == "problem":
        yield row.subject_id
    elif isinstance(row, Problem):
        yield from row.parents


def _rollouts(row: Row) -> Iterator[int]:
    if (isinstance(row, Score) and row.subject_kind in {"rollout", "step", "token"}) or (
        isinstance(row, Decision) and row.subject_kind == "rollout"
    ):
        yield row.subject_id
    elif isinstance(row, TokenLogps):
        yield row.rollout_id
    elif isinstance(row, Example):
        yield from (i for i in (row.rollout_id, row.rejected_rollout_id, *row.sources) if i is not None)


def _refuse_repeats(rows: Sequence[Row], who: str) -> None:
    """Two equal orders would be sampled with equal seeds: the same completions twice."""
    seen = set()
    for row in rows:
        if isinstance(row, Plan):
            order = (row.problem_id, row.context_id, row.start_rollout_id, row.branch_step, row.params)
            if order in seen:
                raise PluginError(f"{who} orders problem {row.problem_id} twice; write one row with a larger `n`")
            seen.add(order)


def _refuse_splits(rows: Sequence[Row], who: str) -> None:
    for row in rows:
        if isinstance(row, Problem) and row.split not in SPLITS:
            raise PluginError(
                f"{who}: the split of a problem is 'train' or 'heldout', got {row.split!r}: {row.prompt!r}"
            )


def _admitted(rows: Sequence[Row], given: Given, who: str) -> list[Row]:
    """Only training problems of the recipe's tasks come into the pool, and of those only new ones as active."""
    pool = set(given.pool)
    out: list[Row] = []
    for row in rows:
        assert isinstance(row, Problem)  # the stage may return nothing else, see `finish`
        if row.split != "train":
            raise PluginError(f"{who} returned a problem of the split {row.split!r}; keep 'train': {row.prompt!r}")
        label = row.task or _only({given.problems[i] for i in row.parents if given.problems}) or _only(set(given.tasks))
        if label not in given.tasks:
            raise PluginError(
                f"{who} returned a problem of task {row.task!r}; set `task` to one the recipe has"
                f"{did_you_mean(row.task, given.tasks)}: {row.prompt!r}"
            )
        key = content_key(row)
        out.append(dataclasses.replace(row, task=label, status="rejected" if key in pool else row.status))
        pool.add(key)
    return out


def _only(labels: set[str]) -> str:
    return labels.pop() if len(labels) == 1 else ""
