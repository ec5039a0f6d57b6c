"""What an id names: a row's number, a policy or run by name, a checkpoint by the beginning of its hash, ..."""

from __future__ import annotations

from strop.storage.errors import LakeError, did_you_mean
from strop.storage.kinds import KINDS
from strop.storage.nodes import Place, Reader
from strop.storage.views import literal

SHORTEST_HASH = 6
HASHES = (
    ("policy", "policies", "policy_id", "content_hash", "name"),
    ("recipe", "runs", "recipe_hash", "recipe_hash", "recipe"),
    ("stage_run", "stage_runs", "stage_run_id", "key", "stage_run_id"),
    ("problem", "problems", "problem_id", "problem_key", "problem_id"),
    ("code", "runs", "code_version", "code_version", "run_id"),
)
"""Kind, table, id, and the hash it answers to; what to call it where several do."""


def find(reader: Reader, id: str) -> Place:
    """The one thing an id names. `kind:id` asks for a kind, where a run and a recipe share a name.

    Raises LakeError when nothing, or more than one thing, answers to it.
    """
    kind, _, rest = id.partition(":")
    only = kind if rest and kind in KINDS else None
    name = rest.strip() if only else id
    found = _by_name(reader, name, only) or _by_number(reader, name, only) or _by_hash(reader, name, only)
    if found is None:
        known = [r["name"] for r in reader.select("SELECT name FROM policies UNION SELECT run_id FROM runs ORDER BY 1")]
        raise LakeError(
            f"nothing in the lake {reader.console.root} answers to {id!r}: give a row id, a policy's name, the first "
            f"{SHORTEST_HASH} letters of a hash or ledger key, a run, a recipe, or `kind:id` with one of the kinds "
            f"{', '.join(KINDS)}{did_you_mean(name, known)}"
        )
    return found


def _by_name(reader: Reader, name: str, only: str | None) -> Place | None:
    """A run, a policy or a recipe; also a scorer, seed, code version or group where the kind is given."""
    named = literal(name)
    if only in (None, "run") and reader.select(f"SELECT run_id FROM runs WHERE run_id = {named}"):
        return "run", name
    if only in (None, "policy"):
        rows = reader.select(f"SELECT policy_id FROM policies WHERE name = {named} ORDER BY policy_id")
        if rows:
            return "policy", rows[-1]["policy_id"]
    if only in (None, "recipe"):
        rows = reader.select(f"SELECT DISTINCT recipe_hash FROM runs WHERE recipe = {named} ORDER BY 1")
        if len(rows) > 1:
            raise _several(name, "recipes are called so", [row["recipe_hash"] for row in rows])
        if rows:
            return "recipe", rows[0]["recipe_hash"]
    if only == "scorer":
        said = reader.select("SELECT DISTINCT scorer || ' ' || scorer_version AS name FROM scores ORDER BY 1")
        fitting = [row["name"] for row in said if row["name"] == name or row["name"].rpartition(" ")[0] == name]
        if len(fitting) > 1 and name not in fitting:
            raise _several(name, "versions of the scorer are there", fitting)
        return ("scorer", name if name in fitting else fitting[0]) if fitting else None
    if only == "seed" and name.lstrip("-").isdecimal():
        return ("seed", int(name)) if reader.select(f"SELECT 1 FROM runs WHERE seed = {int(name)} LIMIT 1") else None
    return None


def _by_number(reader: Reader, name: str, only: str | None) -> Place | None:
    """A row, whatever its table, in one query: an id names one row of the lake."""
    if not name.isdecimal() or int(name) >= 2**63:
        return None
    tables = [k for k in KINDS.values() if k.table and not k.names_text and only in (None, k.name)]
    parts = [f"(SELECT {i} AS n, {k.id} AS id FROM {k.table} WHERE {k.id} = {name})" for i, k in enumerate(tables)]
    if only in (None, "group"):
        parts.append(f"(SELECT {len(tables)} AS n, group_id AS id FROM rollouts WHERE group_id = {name} LIMIT 1)")
    found = reader.select(f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY n LIMIT 1") if parts else []
    kinds = [*(k.name for k in tables), "group"]
    return (kinds[found[0]["n"]], found[0]["id"]) if found else None


def _by_hash(reader: Reader, name: str, only: str | None) -> Place | None:
    """A checkpoint, recipe, shard, problem or code version by the beginning of its hash."""
    if len(name) < SHORTEST_HASH:
        return None
    begun = literal(name.lower())
    for kind, table, id, column, called in HASHES:
        if only not in (None, kind):
            continue
        rows = reader.select(
            f"SELECT {column} AS hash, max({id}) AS id, min({called})::VARCHAR AS called, count(DISTINCT {id}) AS n "
            f"FROM {table} WHERE starts_with({column}, {begun}) GROUP BY {column} ORDER BY called"
        )
        if len(rows) > 1:
            raise _several(name, f"{KINDS[kind].plural or table} begin so", [row["called"] for row in rows])
        if rows:
            return kind, rows[0]["id"]
    return None


def _several(name: str, what: str, names: list[str]) -> LakeError:
    return LakeError(f"{name!r}: several {what} ({', '.join(names)}): give more of it, or one of these")
