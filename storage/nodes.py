"""Nodes of a lineage, and the reader that makes them from the lake's rows: one query a kind, however many ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from strop.storage.console import Console
from strop.storage.kinds import KINDS, Kind, Row
from strop.storage.views import literal

Id = int | str
Place = tuple[str, Id]
"""Kind and id: one thing in the lake."""


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in the lake, or a group of alike things, and what it leads to."""

    kind: str
    """A name of `kinds.KINDS`; for a group the plural."""
    id: str
    """As text, since a BIGINT does not survive JavaScript's numbers; empty for a group."""
    label: str
    relation: str = ""
    """How the node above leads to this one: 'sampled by', 'trained on', ..."""
    reverse: str = ""
    """How this one leads to the node above: 'sampled', 'trained', ..."""
    facts: dict[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()
    more: int = 0
    """Members left out of `children`."""
    above: bool = False
    """It stands elsewhere in the lineage, nearer to the row asked for, with what it leads to."""


class Reader:
    """Rows of one console as mappings."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def select(self, sql: str) -> list[Row]:
        """Rows of a query as mappings."""
        result = self.console.query(sql)
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

    def rows(self, kind: str, where: str) -> list[Row]:
        """Rows of one kind under a condition, in order of their id."""
        of = KINDS[kind]
        if kind == "recipe":
            wanted = f"{of.id}, any_value(recipe) AS recipe"
            return self.select(f"SELECT {wanted} FROM runs WHERE {where} GROUP BY {of.id} ORDER BY {of.id}")
        shared = [c for c in ("run_id", "round", "stage_run_id") if c != of.id]
        wanted = ", ".join(filter(None, [of.id, of.wanted, *shared]))
        return self.select(f"SELECT {wanted} FROM {of.table} WHERE {where} ORDER BY {of.id}")

    def by_id(self, kind: str, ids: Collection[Id]) -> dict[Id, Row]:
        """The rows of these ids that the snapshot has; of one written again, the newest."""
        of = KINDS[kind]
        if not of.table:
            return {id: {of.id: id} for id in ids}
        return {row[of.id]: row for row in self.rows(kind, f"{of.id} IN ({listed(ids)})")} if ids else {}

    def nodes(self, places: Iterable[Place]) -> dict[Place, Node]:
        """A node without children for each place; one the snapshot lacks says so."""
        ids: dict[str, set[Id]] = {}
        for kind, id in places:
            ids.setdefault(kind, set()).add(id)
        rows = {kind: self.by_id(kind, of_kind) for kind, of_kind in ids.items()}
        ledger = {row.get("stage_run_id") for kind, found in rows.items() if _stamped(kind) for row in found.values()}
        stages = self.by_id("stage_run", {id for id in ledger if id})
        made: dict[Place, Node] = {}
        for kind, of_kind in ids.items():
            for id in of_kind:
                row = rows[kind].get(id)
                made[kind, id] = (
                    Node(kind, str(id), "not in this snapshot") if row is None else _node(KINDS[kind], row, stages)
                )
        return made


def listed(ids: Iterable[Id]) -> str:
    """Ids as the inside of an IN (...), sorted so that a query is the same in every process."""
    return ", ".join(sorted(map(literal, ids)))


def made_by(row: Row, stages: dict[Id, Row]) -> str:
    """One line on the stage run that wrote a row."""
    stage = stages.get(row["stage_run_id"])
    where = f"round {row['round']} of {row['run_id']}"
    if stage is None:
        return where
    return f"{stage['stage']} ({stage['plugin']} {stage['plugin_version']}, seed {stage['seed']}), {where}"


def _stamped(kind: str) -> bool:
    return bool(KINDS[kind].table) and kind not in ("run", "stage_run", "recipe")


def _node(kind: Kind, row: Row, stages: dict[Id, Row]) -> Node:
    facts = {name: row[name] for name in kind.facts if row.get(name) not in (None, "")}
    if _stamped(kind.name):
        facts["round"] = row["round"]
        facts["made_by"] = made_by(row, stages)
    return Node(kind.name, str(row[kind.id]), kind.label(row), facts=facts)
