"""Which files of a table a query can have rows from, by what its WHERE says and by the catalog's bounds of each file.

DuckDB opens every file of a view to learn from its footer that it is not needed: 0.1-0.6 ms each, although the catalog
knows. So where a table has many files, those are left out whose bounds a condition `column = value`, IN or BETWEEN
excludes. Only where leaving them out cannot change the answer: the table must be read by name in a FROM of inner joins
whose own WHERE says it, and so wherever the query reads the table. Anything else reads all files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strop.storage.catalog_db import CatalogDb

MANY = 32
"""Fewer files are opened as fast as their bounds are read."""
BOUNDS = """
SELECT s.data_file_id, s.min_value, s.max_value FROM ducklake_file_column_stats s
JOIN ducklake_table t ON t.table_id = s.table_id
JOIN ducklake_column c ON c.table_id = s.table_id AND c.column_id = s.column_id
WHERE t.table_name = :table AND t.end_snapshot IS NULL AND c.column_name = :column AND c.end_snapshot IS NULL
  AND c.parent_column IS NULL AND s.min_value IS NOT NULL AND s.max_value IS NOT NULL"""
KINDS: dict[str, type] = {"BIGINT": int, "INTEGER": int, "VARCHAR": str}
"""SQL types whose bounds are compared here, and the constants they are compared with."""
CONSTANTS = frozenset({"INTEGER", "BIGINT", "VARCHAR"})
"""Types of constants that the parsed query holds as they are; 5.0 is a 50 there."""

Value = int | str
Bounds = dict[int, tuple[Value, Value]]
"""By file: its least and greatest value of a column."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A column's value lies in one of these spans, ends included."""

    column: str
    spans: tuple[tuple[Value, Value], ...]

    def allows(self, low: Value, high: Value) -> bool:
        """Whether a file with these bounds can have such a value."""
        if type(self.spans[0][0]) is not type(low):  # DuckDB casts one of them
            return True
        return any(_key(first) <= _key(high) and _key(low) <= _key(last) for first, last in self.spans)


Conditions = list[list[Condition]]
"""One list for each place that reads a table; all conditions of a place hold there."""


def conditions(tree: Any) -> dict[str, Conditions]:
    """By table, what the parsed query asks of it; a table whose name it gives to a query of its own is left out."""
    found: dict[int, list[Condition]] = {}
    everywhere: list[dict[str, Any]] = []
    shadowed = set()
    for node in _nodes(tree):
        match node.get("type"):
            case "SELECT_NODE" if node.get("sample") is None:
                found |= _of_select(node)
            case "BASE_TABLE":
                everywhere.append(node)
        shadowed.update(entry["key"].lower() for entry in node.get("cte_map", {}).get("map", ()))
    by_table: dict[str, Conditions] = {}
    for node in everywhere:
        by_table.setdefault(node["table_name"].lower(), []).append(found.get(id(node), []))
    return {name: places for name, places in by_table.items() if name not in shadowed}


def read_bounds(db: CatalogDb, table: str, column: str, sql_type: str) -> Bounds:
    """The files' bounds of a column; a file without them is not among them."""
    read = KINDS[sql_type]
    rows = db.execute(BOUNDS, {"table": table, "column": column})
    return {row["data_file_id"]: (read(row["min_value"]), read(row["max_value"])) for row in rows}


def excluded(places: Conditions, bounds: Mapping[str, Bounds]) -> frozenset[int]:
    """Files that no place can have a row from, by the bounds of each column."""
    without = [set[int]().union(*(_without(c, bounds.get(c.column, {})) for c in place)) for place in places]
    return frozenset(set.intersection(*without)) if without else frozenset()


def _without(condition: Condition, bounds: Bounds) -> set[int]:
    return {file for file, (low, high) in bounds.items() if not condition.allows(low, high)}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _of_select(node: dict[str, Any]) -> dict[int, list[Condition]]:
    """For each table in the FROM of one SELECT, by the identity of its node: what the WHERE says of it.

    A column without a table's name is of the one table that has it, or joined by USING and then the same in both.
    """
    sources = _joined(node.get("from_table"))
    if sources is None:
        return {}
    said = [pair for part in _parts(node.get("where_clause")) for pair in _condition(part)]
    found = {}
    for source in sources:
        if source["type"] != "BASE_TABLE" or source.get("column_name_alias"):
            continue
        name = (source["alias"] or source["table_name"]).lower()
        found[id(source)] = [condition for qualifier, condition in said if qualifier in ("", name)]
    return found


def _joined(source: Any) -> list[dict[str, Any]] | None:
    """What a FROM joins; None when a join or a sample is of a kind that looks at rows the WHERE leaves out."""
    if not isinstance(source, dict) or source.get("sample") is not None:
        return None
    if source.get("type") != "JOIN":
        return [source]
    if source["join_type"] != "INNER" or source["ref_type"] not in ("REGULAR", "CROSS"):
        return None
    left, right = _joined(source["left"]), _joined(source["right"])
    return None if left is None or right is None else left + right


def _parts(where: Any) -> list[dict[str, Any]]:
    """What is joined by AND."""
    if not isinstance(where, dict):
        return []
    if where.get("type") != "CONJUNCTION_AND":
        return [where]
    return [part for child in where["children"] for part in _parts(child)]


def _condition(part: dict[str, Any]) -> list[tuple[str, Condition]]:
    """A condition with the name its column is qualified by, or ''; none when it is of another form."""
    match part:
        case {"type": "COMPARE_EQUAL", "left": left, "right": right}:
            if left.get("type") != "COLUMN_REF":
                left, right = right, left
            column, values = left, [right]
        case {"type": "COMPARE_IN", "children": [column, *values]}:
            pass
        case {"type": "COMPARE_BETWEEN", "input": column, "lower": lower, "upper": upper}:
            ends = _constants([lower, upper])
            return _named(column, ((ends[0], ends[1]),)) if ends else []
        case _:
            return []
    return _named(column, tuple((value, value) for value in _constants(values)))


def _named(column: dict[str, Any], spans: tuple[tuple[Value, Value], ...]) -> list[tuple[str, Condition]]:
    names = [name.lower() for name in column.get("column_names", ())] if column.get("type") == "COLUMN_REF" else []
    if not spans or not 1 <= len(names) <= 2:
        return []
    return [("" if len(names) == 1 else names[0], Condition(names[-1], spans))]


def _constants(nodes: Sequence[dict[str, Any]]) -> list[Value]:
    """Whole numbers or texts; none when they are anything else, or both."""
    found = [node["value"] for node in nodes if node.get("type") == "VALUE_CONSTANT"]
    if len(found) < len(nodes) or any(value["is_null"] or value["type"]["id"] not in CONSTANTS for value in found):
        return []
    values = [value["value"] for value in found]
    return values if len({type(value) for value in values}) == 1 else []


def _key(value: Value) -> int | bytes:
    return value.encode() if isinstance(value, str) else value
