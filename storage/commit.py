"""One commit: all rows of one shard of one stage become visible together with its ledger row, or none does.

Workers leave fsynced Parquet under `staging/`; here, under the lake's one exclusive lock, it is renamed below `data/`,
the small rows are written beside it in the same way, and both are registered in one transaction. File names follow
from the ledger key, so that a retry after a crash overwrites what the crash left instead of adding to it. The key is
looked up inside the transaction: a commit that came through although its process died before hearing of it is not
made twice.

Files must lie under `data/main/<table>/`: only there does DuckLake store relative paths, and a lake can be moved.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from strop.storage.checksums import note
from strop.storage.durable import discard, fsync, make_folder
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.extensions import quoted
from strop.storage.ids import digest, in_file_name
from strop.storage.parquet import write_rows
from strop.storage.place import place_of
from strop.storage.tables import BY_NAME, Row, StageRun
from strop.storage.upkeep import synced

KEY_IS_THERE = "SELECT count(*) FROM lake.stage_runs WHERE key = ?"
REGISTER = "CALL ducklake_add_data_files('lake', {table}, ?::VARCHAR[])"
SET_STATUS = "UPDATE lake.policies SET status = ? WHERE policy_id = ?"
LAST_SNAPSHOT = "SELECT id FROM ducklake_last_committed_snapshot('lake')"


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

    After any failure the transaction is rolled back and what was put below `data/` is removed.
    """
    placed: list[Path] = []
    written: list[Path] = []
    connection.execute("BEGIN")
    try:
        if _is_there(connection, commit.stage_run.key):
            connection.execute("ROLLBACK")
            return None
        _place(connection, root, commit, placed)
        written += _update_policies(connection, root, commit.policy_status)
        _sign(connection, commit)
    except BaseException:
        _roll_back(connection)
        discard(placed)
        raise
    snapshot = _finish(connection, commit.stage_run.key, placed)
    with contextlib.suppress(OSError, LakeError):  # the commit stands; `strop gc` catches up
        note(place_of(root), [*placed, *written])
    return snapshot


def _is_there(connection: duckdb.DuckDBPyConnection, key: str) -> bool:
    found = connection.execute(KEY_IS_THERE, [key]).fetchone()
    return found is not None and found[0] > 0


def _place(connection: duckdb.DuckDBPyConnection, root: Path, commit: Commit, placed: list[Path]) -> None:
    """Rename the workers' files to where they stay, write the rows beside them and register both."""
    rows = {table: members for table, members in commit.rows.items() if members}
    rows[StageRun.TABLE] = [*rows.get(StageRun.TABLE, ()), commit.stage_run]
    for table in {**commit.files, **rows}:
        targets: list[Path] = []
        for path in commit.files.get(table, ()):
            targets.append(target_of(root, table, commit.stage_run, len(targets)))
            make_folder(targets[-1].parent)
            path.replace(targets[-1])
            placed.append(targets[-1])
        for folder in {path.parent for path in targets}:
            fsync(folder)
        if table in rows:
            targets.append(target_of(root, table, commit.stage_run, len(targets)))
            placed.append(write_rows(targets[-1], BY_NAME[table], rows[table]))
        if targets:
            connection.execute(REGISTER.format(table=quoted(table)), [[str(path) for path in targets]])


def target_of(root: Path, table: str, stage_run: StageRun, index: int) -> Path:
    """Where the index-th file of a table of a shard stays: the same on every retry."""
    name = f"{in_file_name(stage_run.stage)}-{stage_run.shard}-{digest(stage_run.key, size=8)}-{index}.parquet"
    return root / "data" / "main" / table / in_file_name(stage_run.run_id) / f"r{stage_run.round}" / name


def _update_policies(connection: duckdb.DuckDBPyConnection, root: Path, policy_status: Mapping[int, str]) -> list[Path]:
    """Set the status of policies; DuckDB writes the new versions of their rows itself, into the files returned."""
    with synced(root, "policies") as written:
        for policy_id, status in policy_status.items():
            changed = connection.execute(SET_STATUS, [status, policy_id]).fetchone()
            if changed is None or changed[0] != 1:
                raise LakeError(
                    f"cannot set the status of policy {policy_id} to {status!r}: the lake has no such policy"
                )
    return written


def _sign(connection: duckdb.DuckDBPyConnection, commit: Commit) -> None:
    of = commit.stage_run
    extra = {"run": of.run_id, "round": of.round, "stage": of.stage, "shard": of.shard, "key": of.key}
    message = commit.message or f"{of.run_id} round {of.round}: {of.stage} {of.shard + 1}/{of.shards}"
    connection.execute(
        "CALL lake.set_commit_message('strop', ?, extra_info => ?)", [message, json.dumps(extra, sort_keys=True)]
    )


def _finish(connection: duckdb.DuckDBPyConnection, key: str, placed: Sequence[Path]) -> int:
    """COMMIT. When it fails nobody knows on which side, so the files go only if the key turns out to be absent."""
    try:
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        if _is_there(connection, key):  # else the files stay when even this look-up fails: an orphan is harmless
            snapshot = connection.execute(LAST_SNAPSHOT).fetchone()
            return int(snapshot[0]) if snapshot else -1
        discard(placed)
        raise
    found = connection.execute(LAST_SNAPSHOT).fetchone()
    assert found is not None  # a transaction was committed above
    return int(found[0])


def _roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute("ROLLBACK")
    except duckdb.Error:  # DuckDB has already aborted it, as after a failed COMMIT
        return


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
