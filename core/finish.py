"""What a plugin's rows lack before they can be stored: names, versions, groups, keys, ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strop.core.problems import problem_key
from strop.core.registry import Plugin
from strop.core.seeds import derive
from strop.core.subjects import Given, check_subjects
from strop.storage.errors import PluginError, StageError
from strop.storage.ids import ROWS_PER_SHARD, stamp
from strop.storage.tables import Context, Decision, Example, Metric, Problem, Rollout, Row, Score

OF_ROLLOUT = frozenset({"rollout", "step", "token"})
"""Kinds of score whose subject is a rollout, or a part of one."""


Replaces = Mapping[tuple[str, int, int | None, str], int]
"""Subject kind, subject, step index and scorer -> the score there is."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where the rows of one shard belong."""

    run_id: str
    round: int
    stage_run_id: int
    name: str
    """What rows carry as scorer, decider, builder, task or origin."""
    policy_id: int = 0
    split: str = "train"
    given: Given = dataclasses.field(default_factory=Given)
    """What the plugin was handed, and so may write rows about."""
    replaces: Replaces = dataclasses.field(default_factory=dict)
    """Scores that new ones on the same subject supersede, where something is verified again."""


def finish(
    rows: Sequence[Row], where: Stamp, *, allowed: tuple[type[Row], ...], plugin: Plugin
) -> dict[str, list[Row]]:
    """The rows by table, complete, with ids.

    Raises PluginError for a row of a kind the stage may not write or about something the plugin was not handed,
    StageError for more rows than one shard can number.
    """
    who = f"{plugin.stage} plugin {plugin.name!r}"
    for row in rows:
        if not isinstance(row, allowed):
            raise PluginError(
                f"{who} returned a {type(row).__name__}; "
                f"it may return {' and '.join(kind.__name__ for kind in allowed)}"
            )
    if len(rows) > ROWS_PER_SHARD:
        raise StageError(
            f"{who} returned {len(rows)} rows at once, and {ROWS_PER_SHARD} can be numbered: "
            "take fewer problems or rollouts a round, or a smaller `shard_rollouts`"
        )
    rows, made = _linked(rows, where, who)
    rows = check_subjects(rows, where.given, made, plugin)
    rollouts = {**(where.given.rollouts or {}), **made}
    by_table: dict[str, list[Row]] = {kind.TABLE: [] for kind in allowed}
    for row in rows:
        by_table[row.TABLE].append(dataclasses.replace(row, **_fields(row, where, plugin, rollouts)))
    return stamp(by_table, run_id=where.run_id, round=where.round, stage_run_id=where.stage_run_id, first=len(made))


def _fields(row: Row, where: Stamp, plugin: Plugin, rollouts: Mapping[int, int]) -> dict[str, Any]:
    """The fields that are not the plugin's to set. Ids go, too: a row made by `replace` still has its model's."""
    match row:
        case Rollout():
            group = derive(0, "group", where.run_id, where.round, where.policy_id, row.problem_id, row.context_id)
            return {"policy_id": where.policy_id, "group_id": row.group_id or group, "split": where.split}
        case Problem():
            task = where.name if plugin.stage == "task" else row.task
            origin = "task" if plugin.stage == "task" else where.name
            key = problem_key(dataclasses.replace(row, task=task))
            return {"problem_id": 0, "task": task, "problem_key": key, "origin": origin}
        case Score():
            of_rollout = rollouts.get(row.subject_id) if row.subject_kind in OF_ROLLOUT else None
            of_problem = row.subject_id if row.subject_kind == "problem" else of_rollout
            scorer = row.scorer or where.name
            return {
                "score_id": 0,
                "scorer": scorer,
                "supersedes": where.replaces.get((row.subject_kind, row.subject_id, row.step_index, scorer)),
                "scorer_version": row.scorer_version or plugin.mark.version,
                "problem_id": row.problem_id if row.problem_id is not None else of_problem,
            }
        case Decision():
            return {"decision_id": 0, "decider": where.name}
        case Example():
            return {"example_id": 0, "builder": where.name}
        case Context():
            return {"context_id": 0, "memory": where.name}
        case Metric():
            return {"metric_id": 0, "policy_id": row.policy_id or where.policy_id}
    return {row.ID: 0} if row.ID else {}


def _linked(rows: Sequence[Row], where: Stamp, who: str) -> tuple[list[Row], dict[int, int]]:
    """Rollouts get their ids first, because trees and inner scores name rollouts of the same shard.

    A negative `parent_rollout_id` or `subject_id` counts them in the order returned: -1 is the first rollout.
    Returns the rows, rollouts first, and the problems of the rollouts by id.
    """
    rollouts = [row for row in rows if isinstance(row, Rollout)]
    first = where.stage_run_id << 20

    def resolved(reference: int) -> int:
        if reference >= 0 or not rollouts:
            return reference
        if -reference > len(rollouts):
            raise PluginError(
                f"{who} refers to rollout {reference}, and returned {len(rollouts)}: "
                "-1 is the first rollout it returned, -2 the second"
            )
        return first + (-reference - 1)

    out: list[Row] = []
    for i, rollout in enumerate(rollouts):
        parent = None if rollout.parent_rollout_id is None else resolved(rollout.parent_rollout_id)
        out.append(dataclasses.replace(rollout, rollout_id=first + i, parent_rollout_id=parent))
    for row in rows:
        if isinstance(row, Score) and row.subject_kind in OF_ROLLOUT:
            out.append(dataclasses.replace(row, subject_id=resolved(row.subject_id)))
        elif not isinstance(row, Rollout):
            out.append(row)
    return out, {first + i: row.problem_id for i, row in enumerate(rollouts)}
