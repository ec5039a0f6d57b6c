"""The gate of the SQL console: one SELECT, over the lake's tables, and no function that reaches outside them.

DuckDB's own lock-down (`enable_external_access = false`) still leaves functions that read or write files, so a query
is parsed first, and every table and table function in it must be on a list. What passes runs against a DuckDB that
may open the lake's own data files and nothing else: two walls, either of which would do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

from strop.storage.errors import LakeError, did_you_mean
from strop.storage.views import literal

TABLE_FUNCTIONS = frozenset(
    {"unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree"}
    | {"duckdb_tables", "duckdb_views", "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_types"}
)
"""Table functions that read no file and change nothing."""
FORBIDDEN = frozenset({"getenv", "write_log", "sleep_ms", "pg_sleep"})
"""Scalar functions that look outside the query, or only burn time."""
SHOWN = frozenset({'"tables"', "__show_tables_expanded", '"databases"', '"schemas"'})
DESCRIBING = frozenset({"information_schema", "pg_catalog"})


def check(connection: duckdb.DuckDBPyConnection, sql: str, tables: Collection[str]) -> set[str] | None:
    """The names in `tables` that a query reads; None when it describes them all (SHOW TABLES and the like).

    Raises LakeError that says what is not allowed and what to write instead.
    """
    try:
        statements = connection.extract_statements(sql)
    except duckdb.PermissionException as error:  # IMPORT DATABASE is expanded by the parser itself
        raise LakeError(f"the console only reads the lake's tables: {error}") from error
    except duckdb.Error as error:
        raise LakeError(f"this is not SQL that DuckDB understands: {error}") from error
    if len(statements) != 1:
        raise LakeError(
            f"the console takes one SELECT at a time, got {len(statements)} statements"
            + ("; write PIVOT as `FROM t PIVOT (sum(x) FOR y IN ('a', 'b'))`" if "pivot" in sql.lower() else "")
        )
    kind = statements[0].type.name
    found = connection.execute(f"SELECT json_serialize_sql({literal(statements[0].query)})").fetchone()
    tree = json.loads(found[0]) if found else {}
    if kind != "SELECT" or tree.get("error"):
        first = sql.split(maxsplit=1)[0].upper() if sql.split() else "nothing"
        raise LakeError(f"the console only reads: write one SELECT (or DESCRIBE, SHOW TABLES, SUMMARIZE), got {first}")
    return _walk(tree, {name.lower() for name in tables})


def _walk(tree: Any, tables: set[str]) -> set[str] | None:
    nodes = list(_nodes(tree))
    named = {entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ())}
    read: set[str] = set()
    everything = False
    for node in nodes:
        match node.get("type"):
            case "BASE_TABLE":
                everything |= _is_describing(node)
                if not _is_describing(node):
                    read |= _table(node, tables, named)
            case "TABLE_FUNCTION":
                name = node["function"].get("function_name", "").lower()
                if name not in TABLE_FUNCTIONS:
                    raise LakeError(
                        f"the console does not allow the table function {name}(): it reads the lake's tables only"
                        f"{did_you_mean(name, TABLE_FUNCTIONS)}. `SHOW TABLES` lists the tables"
                    )
                everything |= name.startswith("duckdb_")
            case "SHOW_REF":
                everything = True
                if node.get("query") is None and node.get("table_name") not in SHOWN:
                    raise LakeError(f"the console cannot show {node.get('table_name')}; try SHOW TABLES or DESCRIBE")
            case "FUNCTION":
                if node.get("function_name", "").lower() in FORBIDDEN:
                    raise LakeError(f"the console does not allow the function {node['function_name']}()")
    return None if everything else read


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the parsed query; iterative, since a hostile query can be nested deeply."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _is_describing(node: dict[str, Any]) -> bool:
    schema, name = node.get("schema_name", "").lower(), node.get("table_name", "").lower()
    return schema in DESCRIBING or (not schema and name in ("duckdb_tables", "duckdb_columns", "duckdb_views"))


def _table(node: dict[str, Any], tables: set[str], named: set[str]) -> set[str]:
    """The table a node reads. Raises LakeError when it is none of the lake's: DuckDB would take it for a file."""
    name = node["table_name"].lower()
    if node.get("at_clause"):
        raise LakeError("the console reads one snapshot: choose it with --as-of, not with AT (...)")
    plain = node.get("schema_name", "").lower() in ("", "main") and node.get("catalog_name", "").lower() in (
        "",
        "memory",
    )
    if plain and name in tables:
        return {name}
    if plain and name in named:
        return set()
    full = ".".join(filter(None, (node.get("catalog_name"), node.get("schema_name"), node["table_name"])))
    raise LakeError(f"the lake has no table {full!r}{did_you_mean(name, tables)}")
