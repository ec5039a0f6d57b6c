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
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from strop.storage import keys
from strop.storage.catalog_db import open_catalog_db
from strop.storage.ducklake_tables import check_format
from strop.storage.durable import discard, fsync_all, make_folder
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.footers import read_footer
from strop.storage.ids import digest
from strop.storage.parquet import encode, to_arrow
from strop.storage.place import Place, place_of
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


def commit_locked(connection: duckdb.DuckDBPyConnection, root: Path, commit: Commit) -> int | None:
    """Make the commit; the caller holds the lock. None when the key was there already.

    After any failure nothing is registered and what was put below `data/` is removed.
    """
    place, key = place_of(root), commit.stage_run.key
    placed: list[Path] = []
    try:
        rows, ended = with_status(connection, root, commit.rows, commit.policy_status)
        with open_catalog_db(place, write=True) as db:
            if keys.find(db, key) is not None:
                return None
            check_format(db, place)
            rows[StageRun.TABLE] = [*rows.get(StageRun.TABLE, ()), commit.stage_run]
            commit = dataclasses.replace(commit, rows=rows)
            files = _place(root, commit, placed)
            fsync_all([files[table][-1] for table in commit.rows], {path.parent for path in placed})
            snapshot = register(db, _read(root, files), _signature(commit), ended)
            keys.add(db, key, snapshot)
        return snapshot
    except BaseException:
        made = _settle(place, key, placed)
        if made is None:
            raise
        return made


def _place(root: Path, commit: Commit, placed: list[Path]) -> dict[str, list[Path]]:
    """Rename the workers' files to where they stay and write the rows beside them; the files by table.

    The rows of a table are in its last file. What is written here is not flushed yet.
    """
    files: dict[str, list[Path]] = {}
    for table in {**commit.files, **commit.rows}:
        targets = files.setdefault(table, [])
        for path in commit.files.get(table, ()):
            targets.append(target_of(root, table, commit.stage_run, len(targets)))
            make_folder(targets[-1].parent)
            path.replace(targets[-1])
            placed.append(targets[-1])
        if table in commit.rows:
            targets.append(target_of(root, table, commit.stage_run, len(targets)))
            make_folder(targets[-1].parent)
            placed.append(targets[-1])
            encode(targets[-1], BY_NAME[table], to_arrow(BY_NAME[table], commit.rows[table]))
    return files


def _read(root: Path, files: Mapping[str, Sequence[Path]]) -> list[Placed]:
    """What the catalog is to know of the files."""
    found = []
    for table, paths in files.items():
        folder = root / "data" / "main" / table
        for path in paths:
            footer = read_footer(path, path.stat().st_size)
            found.append(Placed(table, path.relative_to(folder).as_posix(), footer))
    return found


def target_of(root: Path, table: str, stage_run: StageRun, index: int) -> Path:
    """Where the index-th file of a table of a shard stays: the same on every retry."""
    run, stage = (re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in (stage_run.run_id, stage_run.stage))
    name = f"{stage}-{stage_run.shard}-{digest(stage_run.key, size=8)}-{index}.parquet"
    return root / "data" / "main" / table / (run or "_") / f"r{stage_run.round}" / name


def _signature(commit: Commit) -> Signature:
    of = commit.stage_run
    extra = {"run": of.run_id, "round": of.round, "stage": of.stage, "shard": of.shard, "key": of.key}
    message = commit.message or f"{of.run_id} round {of.round}: {of.stage} {of.shard + 1}/{of.shards}"
    return Signature("strop", message, json.dumps(extra, sort_keys=True))


def _settle(place: Place, key: str, placed: Sequence[Path]) -> int | None:
    """After an error nobody knows on which side of COMMIT it was: the files go only if the key is not there.

    The key's snapshot; None when it is not there, or when even this look-up fails: then the files stay, harmless.
    """
    try:
        with open_catalog_db(place, write=True) as db:
            snapshot = keys.find(db, key)
    except (OSError, LakeError):
        return None
    if snapshot is None:
        discard(placed)
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
