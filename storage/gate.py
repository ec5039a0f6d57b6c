"""The gate of the SQL console: one SELECT, over the lake's tables, and no function that reaches outside them.

DuckDB's own lock-down (`enable_external_access = false`) still leaves functions that read or write files, so a query
is parsed first, and every table and table function in it must be on a list. What passes runs against a DuckDB that
may open the lake's own data files and nothing else, in a read-only transaction. `tests/storage/hostile.json` lists what
each of the two walls stops: the gate all of it, the second all but what the file names.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from strop.storage.errors import LakeError, did_you_mean
from strop.storage.views import literal

TABLE_FUNCTIONS = frozenset(
    {"unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree"}
    | {"duckdb_tables", "duckdb_views", "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_types"}
)
"""Table functions that read no file and change nothing."""
FORBIDDEN = frozenset(
    {"getenv", "current_setting", "write_log", "json_serialize_plan"}  # the last binds the SQL it is given, ungated
    | {"sleep_ms", "pg_sleep"}
)
"""Scalar functions that look outside the query, or only burn time."""
OPENINGS = frozenset(
    {"SELECT", "WITH", "FROM", "VALUES", "TABLE", "(", ";", "PIVOT", "UNPIVOT"}
    | {"DESCRIBE", "DESC", "SHOW", "SUMMARIZE"}
)
"""How a statement that only asks begins."""
ONLY_READS = "the console only reads: write one SELECT (or DESCRIBE, SHOW TABLES, SUMMARIZE)"
SHOWN = frozenset({'"tables"', "__show_tables_expanded", '"databases"', '"schemas"'})
DESCRIBING = {
    "": frozenset({"duckdb_tables", "duckdb_columns", "duckdb_views"}),
    "information_schema": frozenset({"tables", "columns", "schemata", "views"}),
    "pg_catalog": frozenset(
        {"pg_tables", "pg_views", "pg_class", "pg_namespace", "pg_attribute", "pg_type", "pg_description"}
    ),
}
"""Schema -> the views of it that tell of tables, and not of settings, files or secrets."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query that may be asked."""

    reads: set[str] | None
    """The tables and views it reads; None when it describes them all (SHOW TABLES and the like)."""
    tree: Any
    """The query as DuckDB parsed it."""


def check(connection: duckdb.DuckDBPyConnection, sql: str, tables: Collection[str]) -> Question:
    """What a query reads of `tables`.

    Raises LakeError that says what is not allowed and what to write instead.
    """
    _begins_as_a_question(sql)
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise LakeError(f"this is not SQL that DuckDB understands: {error}") from error
    if len(statements) != 1:
        raise LakeError(
            f"the console takes one SELECT at a time, got {len(statements)} statements"
            + ("; write PIVOT as `FROM t PIVOT (sum(x) FOR y IN ('a', 'b'))`" if "pivot" in sql.lower() else "")
        )
    try:
        found = connection.execute(f"SELECT json_serialize_sql({literal(statements[0].query)})").fetchone()
        tree = json.loads(found[0]) if found else {}
    except (duckdb.Error, RecursionError) as error:
        raise LakeError(f"the console cannot check this query, it may be nested too deeply: {error}") from error
    if statements[0].type.name != "SELECT" or tree.get("error"):
        raise LakeError(f"{ONLY_READS}, got {statements[0].type.name}")
    return Question(_walk(tree, {name.lower() for name in tables}), tree)


def _begins_as_a_question(sql: str) -> None:
    """Raises LakeError for any other statement, before it is parsed: parsing IMPORT DATABASE reads files."""
    try:
        text = sql.encode()
    except UnicodeEncodeError as error:
        raise LakeError(f"a query must be valid Unicode text: {error}") from error
    begins = True
    for start, _ in duckdb.tokenize(sql):  # offsets are in bytes
        if begins:
            found = re.match(r"\w+|.", text[start : start + 100].decode(errors="replace"), re.DOTALL)
            word = found[0].upper() if found else ""
            if word not in OPENINGS:
                raise LakeError(f"{ONLY_READS}, got {word}{_near(word)}")
        begins = text[start : start + 1] == b";"


def _near(word: str) -> str:
    """A hint for a misspelt word; nothing for one that is spelt well and not allowed."""
    return did_you_mean(word, OPENINGS) if difflib.get_close_matches(word, OPENINGS, cutoff=0.8) else ""


def _walk(tree: Any, tables: set[str]) -> set[str] | None:
    read: set[str] = set()
    everything = False
    for node, named in _nodes(tree):
        if str(node.get("function_name", "")).lower() in FORBIDDEN:
            raise LakeError(f"the console does not allow the function {node['function_name']}()")
        match node.get("type"):
            case "BASE_TABLE" if _is_describing(node, named):
                everything = True
            case "BASE_TABLE":
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
    return None if everything else read


def _nodes(tree: Any) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
    """Every object of the parsed query with the names that WITH gives to queries there.

    A name counts only where DuckDB sees it: after its own query (in it, when that is recursive) and inside the query
    it belongs to. Elsewhere the same name is a table or a file. Iterative, since a query can be nested deeply.
    """
    waiting: list[tuple[Any, frozenset[str]]] = [(tree, frozenset())]
    while waiting:
        node, named = waiting.pop()
        if isinstance(node, list):
            waiting.extend((item, named) for item in node)
        if not isinstance(node, dict):
            continue
        for entry in node.get("cte_map", {}).get("map", ()):
            own = frozenset({entry["key"].lower()})
            recursive = entry["value"]["query"]["node"]["type"] == "RECURSIVE_CTE_NODE"
            waiting.append((entry["value"], named | own if recursive else named))
            named |= own
        yield node, named
        waiting.extend((value, named) for key, value in node.items() if key != "cte_map")


def _is_describing(node: dict[str, Any], named: frozenset[str]) -> bool:
    catalog, schema, name = (node.get(key, "").lower() for key in ("catalog_name", "schema_name", "table_name"))
    shadowed = not schema and name in named
    return catalog in ("", "memory", "system") and not shadowed and name in DESCRIBING.get(schema, ())


def _table(node: dict[str, Any], tables: set[str], named: frozenset[str]) -> set[str]:
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
