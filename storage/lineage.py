"""Lineage: given any id, what it is, what it was made from and what it led to.

    with open_console(Path("lake")) as console:
        found = trace(console, "default-s0/r3")

Policies come from examples, examples from rollouts, rollouts from a policy and a problem, problems from parent
problems; every row from a stage run of a run with a recipe, a seed and a code version. `links` lists every link, and
both directions walk the same list.
"""

from __future__ import annotations

from dataclasses import dataclass

from strop.storage.console import Console
from strop.storage.naming import find
from strop.storage.nodes import Node, Reader
from strop.storage.walk import walk

LIMIT = 3
"""Members shown of a group with many; `Node.more` counts the rest."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The thing asked for, twice: with its origins below it, and with its outcomes below it."""

    up: Node | None
    down: Node | None


def trace(
    console: Console, id: int | str, *, limit: int = LIMIT, depth: int | None = None, up: bool = True, down: bool = True
) -> Lineage:
    """The lineage of a row id, a policy's name or hash (or the beginning of it), a run, a recipe, ...

    Without `depth` it tells the row's story: a policy's ancestors, but not what each of those was trained on. With a
    depth it follows every link that many steps. At most `limit` members of a group are shown.
    Raises LakeError when nothing, or more than one thing, answers to the id.
    """
    reader = Reader(console)
    place = find(reader, str(id).strip())
    return Lineage(
        up=walk(reader, place, "up", limit=limit, depth=depth) if up else None,
        down=walk(reader, place, "down", limit=limit, depth=depth) if down else None,
    )
