"""One commit: all rows of one shard of one stage become visible together with its ledger row, or none does.

Workers leave fsynced Parquet under `staging/`; here, under the lake's one exclusive lock, it is renamed below `data/`,
the small rows are written beside it, all of it is flushed to the disk, and then registered in one transaction of the
catalog. File names follow from the ledger key, so that a retry after a crash overwrites what the crash left instead of
adding to it. The key is looked up, and kept unique, in that transaction: a commit that came through although its
process died before hearing of it is not made twice.

Files must lie under `data/main/<table>/`: only there does DuckLake store relative paths, and a lake can be moved.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from strop.storage import keys
from strop.storage.catalog_db import open_catalog_db
from strop.storage.checksums import record, size_and_hash
from strop.storage.data_files import DataFiles, data_files
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.footers import read_footer
from strop.storage.ids import digest, in_file_name
from strop.storage.parquet import to_bytes
from strop.storage.place import Place
from strop.storage.register import Placed, Signature, register
from strop.storage.status import with_status
from strop.storage.tables import BY_NAME, Row, StageRun


@dataclass(frozen=True, slots=True)
class Commit:
    """What is to become visible at once."""

    stage_run: StageRun
    files: Mapping[str, Sequence[Path]]
    rows: Mapping[str, Sequence[Row]]
    policy_status: Mapping[int, str]
    message: str


def check(commit: Commit) -> None:
    """Raises LakeError when a table is unknown or is given rows of another one."""
    for table in {**commit.files, **commit.rows}:
        if table not in BY_NAME:
            raise LakeError(f"the lake has no table {table!r}{did_you_mean(table, BY_NAME)}")
    for table, rows in commit.rows.items():
        for row in rows:
            if type(row) is not BY_NAME[table]:
                raise LakeError(f"table {table!r} takes {BY_NAME[table].__name__} rows, got {type(row).__name__}")


def commit_locked(connection: duckdb.DuckDBPyConnection, place: Place, commit: Commit) -> int | None:
    """Make the commit; the caller holds the lock. None when the key was there already.

    After any failure nothing is registered and what was put below `data/` is removed.
    """
    key = commit.stage_run.key
    placed: list[str] = []
    try:
        rows, ended = with_status(connection, place, commit.rows, commit.policy_status)
        rows[StageRun.TABLE] = [*rows.get(StageRun.TABLE, ()), commit.stage_run]
        with open_catalog_db(place, write=True) as db:
            if keys.find(db, key) is not None:
                return None
            files, hashes = _place(data_files(place), dataclasses.replace(commit, rows=rows), placed)
            snapshot = register(db, files, _signature(commit), ended)
            keys.add(db, key, snapshot)
            record(db, hashes)
        return snapshot
    except BaseException as error:
        made = _settle(place, key, placed)
        if made is None or not isinstance(error, Exception):  # an interrupt stays one, although the commit stands
            raise
        return made


def _place(files: DataFiles, commit: Commit, placed: list[str]) -> tuple[list[Placed], dict[str, tuple[int, str]]]:
    """Put the workers' files where they stay and the rows as files beside them.

    What the catalog is to know of each, and size and checksum by their path below `data/`.
    """
    sources: dict[str, Path | bytes] = {}
    found = []
    hashes = {}
    for table in {**commit.files, **commit.rows}:
        members: list[Path | bytes] = [*commit.files.get(table, ())]
        if table in commit.rows:
            members.append(to_bytes(BY_NAME[table], commit.rows[table]))
        for index, source in enumerate(members):
            name = name_of(commit.stage_run, index)
            found.append(Placed(table, name, read_footer(source)))
            hashes[f"main/{table}/{name}"] = size_and_hash(source)
            sources[files.at(f"data/main/{table}/{name}")] = source
    placed += sources
    files.put(sources)
    return found, hashes


def name_of(stage_run: StageRun, index: int) -> str:
    """Where in a table's folder the index-th file of a shard stays: the same on every retry."""
    name = f"{in_file_name(stage_run.stage)}-{stage_run.shard}-{digest(stage_run.key, size=8)}-{index}.parquet"
    return f"{in_file_name(stage_run.run_id)}/r{stage_run.round}/{name}"


def _signature(commit: Commit) -> Signature:
    of = commit.stage_run
    extra = {"run": of.run_id, "round": of.round, "stage": of.stage, "shard": of.shard, "key": of.key}
    message = commit.message or f"{of.run_id} round {of.round}: {of.stage} {of.shard + 1}/{of.shards}"
    return Signature("strop", message, json.dumps(extra, sort_keys=True))


def _settle(place: Place, key: str, placed: Sequence[str]) -> int | None:
    """After an error nobody knows on which side of COMMIT it was: the files go only if the key is not there.

    The key's snapshot; None when it is not there, or when even this look-up fails: then the files stay, harmless.
    """
    try:
        with open_catalog_db(place, write=True) as db:
            snapshot = keys.find(db, key)
    except (OSError, LakeError):
        return None
    if snapshot is None:
        data_files(place).delete(placed)
    return snapshot


def failure(error: Exception, root: Path, stage_run: StageRun) -> LakeError:
    """The error a user sees when a commit failed: what, where, what is lost (nothing) and what to do."""
    text = str(error)
    code = error.errno if isinstance(error, OSError) else None
    path = getattr(error, "filename", None) or root
    advice = "run the same command again"
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "disk is full" in text:
        free = shutil.disk_usage(root).free / 2**20
        advice = f"free some space at {root} ({free:.0f} MB left) and run the same command again"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS) or "ermission denied" in text or "readonly database" in text:
        advice = f"make {path} writable and run the same command again"
    return LakeError(
        f"could not commit {stage_run.stage} {stage_run.shard + 1}/{stage_run.shards} of round {stage_run.round} of "
        f"{stage_run.run_id} to {path}: {text}. Nothing that was committed before is lost and nothing of this shard "
        f"is half written; {advice}"
    )
