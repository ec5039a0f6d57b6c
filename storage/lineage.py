"""Lineage: given any id, what it is, what it was made from and what it led to.

    with open_console(Path("lake")) as console:
        found = trace(console, "default-s0/r3")

Policies come from examples, examples from rollouts, rollouts from a policy and a problem, problems from parent
problems; every row from a stage run of a run with a seed. The same links are followed in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from strop.storage.ancestors import above
from strop.storage.console import Console
from strop.storage.descendants import below
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.nodes import KINDS, Node, Reader, Row
from strop.storage.views import literal

SHORTEST_HASH = 6


@dataclass(frozen=True, slots=True)
class Lineage:
    """The thing asked for, twice: with its origins below it, and with its outcomes below it."""

    up: Node
    down: Node


def trace(console: Console, id: int | str) -> Lineage:
    """The lineage of a row id, a policy's name or hash (or the beginning of it), or a run.

    Raises LakeError when nothing, or more than one policy, answers to it.
    """
    reader = Reader(console)
    kind, row = _find(reader, str(id).strip())
    return Lineage(
        up=reader.node(kind, row, children=above(reader, kind, row)),
        down=reader.node(kind, row, children=below(reader, kind, row)),
    )


def _find(reader: Reader, id: str) -> tuple[str, Row]:
    """What an id names: a run or policy by name first, then a row by number, then a checkpoint by hash."""
    named = literal(id)
    for kind, where in (("run", f"run_id = {named}"), ("policy", f"name = {named}")):
        if found := reader.rows(kind, where):
            return kind, found[-1]
    if id.isdecimal():
        for kind in KINDS:
            if kind != "run" and (row := reader.row(kind, int(id))) is not None:
                return kind, row
    if len(id) >= SHORTEST_HASH and (found := reader.rows("policy", f"starts_with(content_hash, {named.lower()})")):
        if len({row["content_hash"] for row in found}) > 1:
            names = ", ".join(row["name"] for row in found)
            raise LakeError(f"{id!r} begins the hash of several policies ({names}): give more of it, or a name")
        return "policy", found[-1]
    known = [row["name"] for row in reader.select("SELECT name FROM policies UNION SELECT run_id FROM runs")]
    raise LakeError(
        f"nothing in the lake {reader.console.root} answers to {id!r}: give a row id, a policy's name or the first "
        f"{SHORTEST_HASH} letters of its hash, or a run{did_you_mean(id, known)}"
    )
