"""Checkpoints that may go: those of no policy, and on request the weights of policies nothing will start from.

The row of a pruned policy stays, with `"pruned": true` in its `detail`: lineage, metrics and rollouts are whole, and
only the weights are gone. Never pruned: a run's first and newest policy and its champion, which a resumed or prolonged
run may start from, a candidate that is still to be judged, and whatever lies outside the lake.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb

from strop.storage.checkpoints import is_pruned
from strop.storage.console import open_console
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.lake import open_lake
from strop.storage.place import Place
from strop.storage.upkeep import synced

POLICIES = "SELECT policy_id, run_id, round, status, path, detail FROM policies ORDER BY run_id, round, policy_id"
MARK = "UPDATE lake.policies SET detail = ? WHERE policy_id = ?"
STATUS: dict[str, frozenset[str]] = {
    "unreferenced": frozenset(),
    "rejected": frozenset({"rejected"}),
    "not-champion": frozenset({"rejected", "retired"}),
}
"""Status of the policies whose weights go, by what is asked for."""

Rows = list[dict[str, Any]]


def candidates(place: Place, which: str) -> list[Path]:
    """Folders of the checkpoints that would be pruned. Raises LakeError for a word there is not."""
    return sorted({place.root / row["path"] for row in _prunable(_policies(place), which)})


def prune(place: Place, which: str) -> list[Path]:
    """Mark the policies whose weights may go; the folders that are to be removed, of pruned policies all.

    Marked first, removed later: after a kill in between the next call finds the marks.
    """
    rows = [row for row in _prunable(_policies(place), which) if not is_pruned(row["detail"])]
    if rows:
        with open_lake(place.root) as lake, lake.exclusive() as connection:
            _mark(connection, place.root, rows)
    policies = _policies(place)
    needed = {row["path"] for row in policies if not is_pruned(row["detail"])}
    paths = {row["path"] for row in policies if is_pruned(row["detail"])} - needed
    return sorted(place.root / path for path in paths if (place.root / path).is_dir())


def unreferenced(place: Place) -> list[Path]:
    """Folders below `policies/` that no policy names."""
    named = {row["path"] for row in _policies(place)}
    folders = sorted((place.root / "policies").glob("*"))
    return [folder for folder in folders if folder.relative_to(place.root).as_posix() not in named]


def _policies(place: Place) -> Rows:
    with open_console(place.root) as console:
        found = console.query(POLICIES)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def _prunable(policies: Rows, which: str) -> Rows:
    if which not in STATUS:
        raise LakeError(f"there is no kind of checkpoint {which!r}{did_you_mean(which, STATUS)}")
    runs: dict[str, Rows] = defaultdict(list)
    for row in policies:
        runs[row["run_id"]].append(row)
    chosen = [row for rows in runs.values() for row in rows[1:-1] if row["status"] in STATUS[which]]
    ids = {row["policy_id"] for row in chosen}
    kept = {row["path"] for row in policies if row["policy_id"] not in ids and not is_pruned(row["detail"])}
    return [row for row in chosen if row["path"] not in kept and not Path(row["path"]).is_absolute()]


def _mark(connection: duckdb.DuckDBPyConnection, root: Path, rows: Rows) -> None:
    connection.execute("BEGIN")
    try:
        with synced(root, "policies"):
            for row in rows:
                detail = {**json.loads(row["detail"] or "{}"), "pruned": True}
                connection.execute(MARK, [json.dumps(detail, sort_keys=True), row["policy_id"]])
        connection.execute("CALL lake.set_commit_message('strop', ?)", [f"gc: pruned {len(rows)} checkpoints"])
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise
