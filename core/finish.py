"""What a plugin's rows lack before they can be stored: names, versions, groups, keys, ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strop.core.problems import problem_key
from strop.core.registry import Plugin
from strop.core.seeds import derive
from strop.storage.errors import PluginError
from strop.storage.ids import stamp
from strop.storage.tables import Decision, Example, Metric, Plan, Problem, Rollout, Row, Score


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
    problem_of: dict[int, int] = dataclasses.field(default_factory=dict)
    """rollout id -> problem id, for scores."""


def finish(
    rows: Sequence[Row], where: Stamp, *, allowed: tuple[type[Row], ...], plugin: Plugin
) -> dict[str, list[Row]]:
    """The rows by table, complete, with ids. Raises PluginError for a row of a kind the stage may not write."""
    for row in rows:
        if not isinstance(row, allowed):
            raise PluginError(
                f"{plugin.stage} plugin {plugin.name!r} returned a {type(row).__name__}; "
                f"it may return {' and '.join(kind.__name__ for kind in allowed)}"
            )
    rows, used = _linked(rows, where)
    by_table: dict[str, list[Row]] = {kind.TABLE: [] for kind in allowed}
    for row in rows:
        by_table[row.TABLE].append(dataclasses.replace(row, **_fields(row, where, plugin)))
    return stamp(by_table, run_id=where.run_id, round=where.round, stage_run_id=where.stage_run_id, first=used)


def _fields(row: Row, where: Stamp, plugin: Plugin) -> dict[str, Any]:
    match row:
        case Problem():
            filled = dataclasses.replace(row, task=row.task or where.name)
            return {
                "task": filled.task,
                "problem_key": row.problem_key or problem_key(filled),
                "origin": "task" if plugin.stage == "task" else where.name,
            }
        case Rollout():
            group = derive(0, "group", where.run_id, where.round, where.policy_id, row.problem_id, row.context_id)
            return {
                "policy_id": where.policy_id,
                "group_id": row.group_id or group,
                "split": where.split,
            }
        case Score():
            problem = row.problem_id
            if problem is None and row.subject_kind == "rollout":
                problem = where.problem_of.get(row.subject_id)
            return {
                "scorer": row.scorer or where.name,
                "scorer_version": row.scorer_version or plugin.mark.version,
                "problem_id": problem,
            }
        case Decision():
            return {"decider": where.name}
        case Example():
            return {"builder": where.name}
        case Metric():
            return {"policy_id": row.policy_id or where.policy_id}
        case Plan():
            return {}
    return {}


def _linked(rows: Sequence[Row], where: Stamp) -> tuple[Sequence[Row], int]:
    """Rollouts get their ids first, because trees and inner scores name rollouts of the same shard.

    A negative `parent_rollout_id` or `subject_id` counts them in the order returned: -1 is the first rollout.
    Returns the rows, and how many ids are taken.
    """
    rollouts = [row for row in rows if isinstance(row, Rollout)]
    if not rollouts:
        return rows, 0
    first = where.stage_run_id << 20

    def resolved(reference: int | None) -> int | None:
        return first + (-reference - 1) if reference is not None and reference < 0 else reference

    out: list[Row] = [
        dataclasses.replace(row, rollout_id=first + i, parent_rollout_id=resolved(row.parent_rollout_id))
        for i, row in enumerate(rollouts)
    ]
    problem_of = {first + i: row.problem_id for i, row in enumerate(rollouts)}
    for row in rows:
        if isinstance(row, Score) and row.subject_kind == "rollout":
            subject = resolved(row.subject_id) or 0
            row = dataclasses.replace(row, subject_id=subject, problem_id=row.problem_id or problem_of.get(subject))
        if not isinstance(row, Rollout):
            out.append(row)
    return out, len(rollouts)
