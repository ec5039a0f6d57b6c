"""The walk along the links: level by level, one query a level for every link of every row on it.

Each row is opened where it is nearest to the start, so that a lineage stays a tree however often its rows meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from strop.storage.kinds import KINDS
from strop.storage.links import LINKS, Link
from strop.storage.nodes import Id, Node, Place, Reader, listed

Direction = Literal["up", "down"]
Found = dict[tuple[int, Id], tuple[int, list[Id]]]
"""(index of the link, id) -> how many it leads to, and the first of them."""

ENDS = {"up": ("child_id", "parent_id"), "down": ("parent_id", "child_id")}
STEP = """
SELECT {n} AS n, {here}::VARCHAR AS here, count(*) AS total,
  [x.id::VARCHAR FOR x IN min(struct_pack(round := round, id := {there}), {limit})] AS first
FROM ({sql}) WHERE {here} IN ({ids}) GROUP BY {here}"""
CHAIN = """
WITH RECURSIVE pairs AS MATERIALIZED (SELECT {here} AS here, {there} AS there FROM ({sql})),
chain AS (
  SELECT here, there FROM pairs WHERE here IN ({ids})
  UNION
  SELECT pairs.here, pairs.there FROM chain JOIN pairs ON pairs.here = chain.there)
SELECT here, there FROM chain ORDER BY here, there"""
"""Every pair of a chain at once: a hundred ancestors are one query, not a hundred levels. A circle ends."""


@dataclass(slots=True)
class _Spot:
    place: Place
    parent: _Spot | None = None
    groups: list[tuple[Link, int, list[_Spot]]] = field(default_factory=list)
    above: bool = False

    @property
    def beside(self) -> set[Place]:
        """What stands beside this row or above it: not worth telling again below it."""
        found, up = {self.place}, self.parent
        if up is not None:
            found |= {spot.place for _, _, members in up.groups for spot in members}
        while up is not None:
            found.add(up.place)
            up = up.parent
        return found


def walk(reader: Reader, start: Place, direction: Direction, *, limit: int, depth: int | None) -> Node:
    """The node of a place with everything in one direction below it.

    With a `depth` every link is followed that many steps; without one those that tell its story, to their end.
    """
    root = _Spot(start)
    placed = {start}
    frontier, level = [root], 0
    chains: dict[int, dict[Id, list[Id]]] = {}
    while frontier and (depth is None or level < depth):
        found = _found(reader, frontier, direction, limit, depth is not None, chains)
        after: list[_Spot] = []
        for spot in frontier:
            beside = spot.beside if spot.parent is not None else {start}
            for index, link in enumerate(LINKS):
                total, ids = found.get((index, spot.place[1]), (0, []))
                if _from(link, direction) != spot.place[0] or not total:
                    continue
                places: list[Place] = [(_to(link, direction), id) for id in ids]
                members = [_Spot(p, spot) for p in places if p not in beside]
                if not members:
                    continue
                spot.groups.append((link, total - (len(places) - len(members)), members))
                for member in members:
                    member.above = member.place in placed
                    placed.add(member.place)
                after += [member for member in members if not member.above]
        frontier, level = after, level + 1
    nodes = reader.nodes(placed)
    return _tree(root, nodes, direction)


def _from(link: Link, direction: Direction) -> str:
    return link.child if direction == "up" else link.parent


def _to(link: Link, direction: Direction) -> str:
    return link.parent if direction == "up" else link.child


def _found(
    reader: Reader,
    frontier: list[_Spot],
    direction: Direction,
    limit: int,
    every: bool,
    chains: dict[int, dict[Id, list[Id]]],
) -> Found:
    """What each row of a level leads to, in one query; chains are fetched whole when they are first met."""
    here, there = ENDS[direction]
    found: Found = {}
    parts = []
    for index, link in enumerate(LINKS):
        follow = every or direction in link.far.split()
        ids = {
            spot.place[1]
            for spot in frontier
            if spot.place[0] == _from(link, direction) and (follow or (spot.parent is None and link.far != "-"))
        }
        if not ids:
            continue
        if link.chain and not every and follow:
            pairs = chains.setdefault(index, {})
            _prefetch(reader, link, direction, ids - pairs.keys(), pairs)
            found |= {(index, id): (len(pairs[id]), pairs[id][:limit]) for id in ids if pairs[id]}
        else:
            parts.append(STEP.format(n=index, here=here, there=there, limit=limit, sql=link.sql, ids=listed(ids)))
    for row in reader.select("\nUNION ALL".join(parts)) if parts else []:
        link = LINKS[row["n"]]
        found[row["n"], _id(_from(link, direction), row["here"])] = (
            row["total"],
            [_id(_to(link, direction), id) for id in row["first"]],
        )
    return found


def _prefetch(reader: Reader, link: Link, direction: Direction, ids: set[Id], pairs: dict[Id, list[Id]]) -> None:
    if not ids:
        return
    here, there = ENDS[direction]
    fetched: dict[Id, list[Id]] = {id: [] for id in ids}
    for row in reader.select(CHAIN.format(here=here, there=there, sql=link.sql, ids=listed(ids))):
        fetched.setdefault(row["here"], []).append(row["there"])
        fetched.setdefault(row["there"], [])
    pairs.update(fetched)


def _id(kind: str, text: str) -> Id:
    return text if KINDS[kind].names_text else int(text)


def _tree(spot: _Spot, nodes: dict[Place, Node], direction: Direction) -> Node:
    children: list[Node] = []
    for link, total, members in spot.groups:
        said, back = (link.up, link.down) if direction == "up" else (link.down, link.up)
        shown = tuple(replace(_tree(m, nodes, direction), relation=said, reverse=back) for m in members)
        if total == 1:
            children += shown
            continue
        of = KINDS[_to(link, direction)]
        plural, label = of.plural or of.table, of.named(total)
        children.append(Node(plural, "", label, said, back, {"count": total}, shown, total - len(shown)))
    return replace(nodes[spot.place], children=tuple(children), above=spot.above)
