"""The lake: every table as Parquet under DuckLake, with a catalog, snapshots and one committer at a time.

    with open_lake(Path("lake"), create=True) as lake:
        lake.commit(stage_run, files={"rollouts": [staged]}, rows={"scores": scores})
        rollouts = lake.rows(Rollout, "run_id = ? AND round = ?", [run_id, 3], without=["token_ids", "logps"])

Under the root: `catalog.sqlite`, `data/` (registered files), `staging/` (files of shards not yet committed),
`policies/` (checkpoints by content), `locks/`, `logs/`, `work/` (scratch of stages). The folder can be moved. Where
`lake.toml` there says so, the catalog is in PostgreSQL and data and policies are on S3 (see `place`); all else stays.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from strop.storage import extensions
from strop.storage.checkpoints import local_checkpoint
from strop.storage.commit import Commit, check, commit_locked, failure
from strop.storage.durable import discard
from strop.storage.errors import CatalogError, LakeError, did_you_mean
from strop.storage.fsck import verify
from strop.storage.keys import keep_keys
from strop.storage.layout import attach, lay_out
from strop.storage.locks import commit_lock
from strop.storage.migrations import absent
from strop.storage.place import Place, no_lake, place_of
from strop.storage.reading import blame
from strop.storage.sole_use import sole_use, through_duckdb
from strop.storage.tables import SCHEMA_VERSION, Policy, Row, StageRun, columns
from strop.storage.upkeep import EVERY, merge_small_files

R = TypeVar("R", bound=Row)

log = logging.getLogger("strop.lake")


class Lake:
    """An open lake. Any thread may use it, one at a time; reads never wait for another process's commit."""

    def __init__(
        self,
        place: Place,
        connection: duckdb.DuckDBPyConnection,
        *,
        read_only: bool,
        absent: Mapping[str, frozenset[str]] = {},
    ) -> None:
        self.place = place
        self.root = place.root
        self.read_only = read_only
        self._absent = absent
        """By table, the columns that this older lake lacks: only a reader meets one."""
        self._connection = connection
        self._one_at_a_time = sole_use(place.root)
        self._keeps_keys = False

    @property
    def staging(self) -> Path:
        """Where workers write: beside a local `data/`, so that a commit only renames."""
        return self.root / "staging"

    def commit(
        self,
        stage_run: StageRun,
        *,
        files: Mapping[str, Sequence[Path]] = {},
        rows: Mapping[str, Sequence[Row]] = {},
        policy_status: Mapping[int, str] = {},
        message: str = "",
    ) -> int | None:
        """Make everything of one shard visible at once, and its ledger row with it; the snapshot's id.

        `files` are Parquet files by table (see `parquet.write_rows`) and are consumed; `rows` are stamped rows by
        table. None, and nothing written, when `stage_run.key` is committed already.
        Raises LakeError when it cannot; then nothing of the shard is in the lake, and its staged files are gone.
        """
        if self.read_only:
            raise LakeError(f"the lake {self.root} was opened read-only; open it without read_only=True to commit")
        commit = Commit(stage_run, files, rows, policy_status, message)
        try:
            check(commit)
            with commit_lock(self.root), self._one_at_a_time:
                if not self._keeps_keys:
                    keep_keys(self._connection, self.place)
                    self._keeps_keys = True
                snapshot = commit_locked(self._connection, self.place, commit)
                if snapshot is not None and snapshot % EVERY == 0:
                    self._merge()
                return snapshot
        except (OSError, pa.ArrowException, CatalogError, duckdb.Error) as error:
            raise failure(error, self.root, stage_run) from error
        finally:  # what was committed has been renamed by now
            discard(path for paths in files.values() for path in paths)

    def _merge(self) -> None:
        """Upkeep after a commit, which stands whatever happens here: a failure is a warning, and is retried later."""
        try:
            merge_small_files(self._connection, self.place)
        except (OSError, duckdb.Error) as error:
            log.warning("could not merge the small files of %s, which stays whole but slower: %s", self.root, error)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, with the lake's lock held: for upkeep. Raises LakeError on a read-only lake."""
        if self.read_only:
            raise LakeError(f"the lake {self.root} was opened read-only; open it without read_only=True to change it")
        with commit_lock(self.root), self._reading("upkeep") as connection:
            yield connection

    def verify(self, run_id: str) -> None:
        """Look at the catalog and compare the files that a run may read with their checksums: its own and merged ones.

        Raises LakeError that names what is damaged, so that it is not used unseen; a fresh run has none to read.
        """
        verify(self.place, run_id)

    def committed(self, run_id: str) -> dict[str, StageRun]:
        """The ledger of a run: every committed shard by its key."""
        return {row.key: row for row in self.rows(StageRun, "run_id = ?", [run_id])}

    def checkpoint(self, policy: Policy) -> Path:
        """The folder of a policy's checkpoint on this machine; one made elsewhere is fetched. Raises LakeError."""
        return local_checkpoint(self.root, policy.path, policy.content_hash)

    def rows(
        self, row: type[R], where: str = "", params: Sequence[object] = (), *, without: Collection[str] = ()
    ) -> list[R]:
        """Rows of one table that satisfy an SQL condition, in order of their id.

        Tables whose rows have no id come in order of their stage run, and within it as written. Columns in `without`
        are not read and are None in the rows: leave out `token_ids` and `logps` where they are not needed. Columns
        that an older lake lacks are None, too, and of a table that it lacks there are no rows.
        """
        from strop.storage.parquet import from_arrow

        for name in without:
            if name not in (known := [c.name for c in columns(row)]):
                raise LakeError(f"table {row.TABLE!r} has no column {name!r} to leave out{did_you_mean(name, known)}")
        without = {*without, *self._absent.get(row.TABLE, ())}
        wanted = ", ".join(f'"{c.name}"' for c in columns(row) if c.name not in without)
        if not wanted:
            return []  # the older lake lacks the whole table
        found = self.arrow(f"SELECT {wanted} FROM {row.TABLE}{' WHERE ' + where if where else ''}", params)
        return sorted(from_arrow(row, found, without), key=attrgetter(row.ID or "stage_run_id"))

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of any query over the tables by their plain names."""
        with self._reading(sql) as connection:
            return connection.execute(sql, params).fetchall()

    def arrow(self, sql: str, params: Sequence[object] = ()) -> pa.Table:
        """The same as an Arrow table."""
        with self._reading(sql) as connection:
            return connection.execute(sql, params).to_arrow_table()

    def snapshot(self) -> int:
        """Id of the newest snapshot; any number up to it can be read back with `AT (VERSION => id)`."""
        return int(self.query("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")[0][0])

    @contextlib.contextmanager
    def _reading(self, sql: str) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._one_at_a_time, through_duckdb(self.root):
            try:
                yield self._connection
            except duckdb.Error as error:
                damage = blame(self.root, error)
                raise damage or LakeError(f"the lake {self.root} cannot answer {sql!r}: {error}") from error

    def close(self) -> None:
        """Let go of the catalog."""
        with self._one_at_a_time:
            self._connection.close()

    def __enter__(self) -> Lake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_lake(root: Path, *, create: bool = False, read_only: bool = False) -> Lake:
    """Open the lake in a folder; with `create`, make one where there is none. A writer migrates an older lake.

    Raises LakeError when there is no lake, when a newer Strop made it, or when the catalog cannot be read.
    """
    place = place_of(root)
    if create and not read_only:
        lay_out(place)
    elif not place.exists:
        raise no_lake(place)
    connection = extensions.connect(place)
    try:
        found = attach(connection, place, create=create, read_only=read_only)
        lacks = absent(connection, place) if found < SCHEMA_VERSION else {}
    except duckdb.Error as error:
        connection.close()
        raise LakeError(f"cannot open the catalog of the lake {place}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return Lake(place, connection, read_only=read_only, absent=lacks)
