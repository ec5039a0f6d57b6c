"""Weights of policies that nothing will start from: taken out on request, while their rows stay and say so.

The row of a pruned policy has `"pruned": true` in its `detail`; lineage, metrics and rollouts are whole. Never pruned:
a run's first and newest policy and its champion, which a resumed or prolonged run may start from, a candidate that is
still to be judged, the newest reward model of each stage, and whatever lies outside the lake.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from strop.storage.catalog_db import open_catalog_db
from strop.storage.checkpoints import is_pruned
from strop.storage.checksums import record, size_and_hash
from strop.storage.console import open_console
from strop.storage.data_files import data_files
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.footers import read_footer
from strop.storage.lake import open_lake
from strop.storage.parquet import to_bytes
from strop.storage.place import Place
from strop.storage.register import Placed, Signature, register
from strop.storage.status import with_changes
from strop.storage.tables import REWARD, Policy

POLICIES = """
SELECT policy_id, run_id, round, name, status, kind, path, detail FROM policies WHERE path <> ''
ORDER BY run_id, round, policy_id"""
STATUS: dict[str, frozenset[str]] = {
    "unreferenced": frozenset(),
    "rejected": frozenset({"rejected"}),
    "not-champion": frozenset({"rejected", "retired", "scorer"}),
}
"""Status of the policies whose weights go, by what is asked for."""

Rows = list[dict[str, Any]]


def prunable(place: Place, which: str) -> set[str]:
    """Paths of the checkpoints that `prune` would leave to be removed. Raises LakeError for a word there is not."""
    rows = _policies(place)
    return {row["path"] for row in _chosen(rows, which)} | _pruned(rows)


def prune(place: Place, which: str) -> set[str]:
    """Mark the policies whose weights may go; the paths of all checkpoints that only pruned policies have.

    Marked first, removed later: after a kill in between the next call finds the marks.
    """
    rows = _policies(place)
    if fresh := [row for row in _chosen(rows, which) if not is_pruned(row["detail"])]:
        _mark(place, fresh)
        rows = _policies(place)
    return _pruned(rows)


def named(place: Place) -> set[str]:
    """Paths of the checkpoints that policies name."""
    return {row["path"] for row in _policies(place)}


def needed(place: Place) -> set[str]:
    """Those of them whose weights were not taken out."""
    rows = _policies(place)
    return {row["path"] for row in rows} - _pruned(rows)


def _policies(place: Place) -> Rows:
    with open_console(place.root) as console:
        found = console.query(POLICIES)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def _pruned(rows: Rows) -> set[str]:
    needed = {row["path"] for row in rows if not is_pruned(row["detail"])}
    return {row["path"] for row in rows} - needed


def _chosen(policies: Rows, which: str) -> Rows:
    if which not in STATUS:
        raise LakeError(f"there is no kind of checkpoint {which!r}{did_you_mean(which, STATUS)}")
    runs: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in policies:
        stage = row["name"].rpartition("/")[2] if row["kind"] == REWARD else ""
        runs[row["run_id"], stage].append(row)
    lines = [rows[:-1] if stage else rows[1:-1] for (_, stage), rows in runs.items()]
    chosen = [row for rows in lines for row in rows if row["status"] in STATUS[which]]
    ids = {row["policy_id"] for row in chosen}
    kept = {row["path"] for row in policies if row["policy_id"] not in ids and not is_pruned(row["detail"])}
    return [row for row in chosen if row["path"] not in kept and not Path(row["path"]).is_absolute()]


def _mark(place: Place, rows: Rows) -> None:
    """Write the rows once more with the mark, in one transaction."""
    details = {row["policy_id"]: {**json.loads(row["detail"] or "{}"), "pruned": True} for row in rows}
    changes = {id: {"detail": json.dumps(detail, sort_keys=True)} for id, detail in details.items()}
    store = data_files(place)
    with open_lake(place.root) as lake, lake.exclusive() as connection:
        changed, ended = with_changes(connection, place, {}, changes)
        content = to_bytes(Policy, changed[Policy.TABLE])
        with open_catalog_db(place, write=True) as db:
            name = f"pruned-{min(details)}-{len(ended)}-{max(ended)}.parquet"
            store.put({store.at(f"data/main/{Policy.TABLE}/{name}"): content})
            signature = Signature("strop", f"gc: the weights of {len(rows)} policies were taken out", "{}")
            register(db, [Placed(Policy.TABLE, name, read_footer(content))], signature, ended)
            record(db, {f"main/{Policy.TABLE}/{name}": size_and_hash(content)})
