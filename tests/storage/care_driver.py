"""Kill a piece of upkeep just before its steps, and print one JSON line for each: care_driver.py WHAT FOLDER STRIDE.

FOLDER holds `template`, a lake; for every STRIDE-th step a copy of it is worked on in a fork that dies there. WHAT is
`migrate`, `merge` or `gc`. See `crash_driver` for why this is a program of its own.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crash_driver import CLOCK, in_child

from strop.storage import extensions, layout, leftovers, pruning, upkeep
from strop.storage import gc as collect
from strop.storage.console import open_console
from strop.storage.data_files import LocalFiles
from strop.storage.fsck import fsck
from strop.storage.lake import open_lake
from strop.storage.place import Place
from strop.storage.tables import TABLES, columns

CHANGING = ("BEGIN", "COMMIT", "ALTER", "INSERT", "CALL ducklake_expire")
MERGED = ("'policies'", "'scores'", "'stage_runs'")
"""Of the merges of the tables, those that are steps."""
FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (upkeep, "fsync"),
    (collect, "merge_small_files"),
    (collect, "catch_up"),
    (pruning, "register"),
    (leftovers.shutil, "rmtree"),
    (LocalFiles, "put"),
    (LocalFiles, "delete"),
)


def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, each call of which is a step."""

    def stepped(*args: Any, **keywords: Any) -> Any:
        CLOCK.step()
        return function(*args, **keywords)

    return stepped


class Stepping:
    """DuckDB's connection; each statement that changes something is a step."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def execute(self, sql: str, *args: Any) -> Any:
        if sql.lstrip().startswith(CHANGING) or ("merge_adjacent" in sql and any(name in sql for name in MERGED)):
            CLOCK.step()
        return self.inner.execute(sql, *args)

    def close(self) -> None:
        """The connection is used again: loading the extensions takes longer than all the rest."""
        self.inner.execute("USE memory")
        self.inner.execute("DETACH lake")


class SteppingSqlite(sqlite3.Connection):
    """The catalog's connection; to begin writing and to commit what was written are steps."""

    writing = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
        self.writing |= sql == "BEGIN IMMEDIATE"
        if self.writing and sql.startswith(("BEGIN", "COMMIT")):
            CLOCK.step()
        return super().execute(sql, *args)


def migrate(root: Path) -> None:
    open_lake(root).close()


def merge(root: Path) -> None:
    with open_lake(root) as lake, lake.exclusive() as connection:
        upkeep.merge_small_files(connection, lake.place, rollouts=True)


def gc(root: Path) -> None:
    """Everything at once, old snapshots and weights included."""
    wishes = collect.Wishes(older_than=datetime.timedelta(), keep_snapshots=3, checkpoints="not-champion")
    collect.gc(root, wishes)


WORK: dict[str, Callable[[Path], None]] = {"migrate": migrate, "merge": merge, "gc": gc}


def dying_at(what: str, root: Path, step: int) -> Callable[[], None]:
    def work() -> None:
        loaded = extensions.connect(Place(root))
        extensions.connect = lambda place: Stepping(loaded)  # type: ignore[assignment,return-value]
        sqlite3.connect = partial(sqlite3.connect, factory=SteppingSqlite)  # type: ignore[assignment]
        for module, name in FUNCTIONS:
            setattr(module, name, stepping(getattr(module, name)))
        attach = layout.attach

        def attached(*args: Any, **keywords: Any) -> Any:
            CLOCK.left, left = -1, CLOCK.left  # opening a lake changes nothing unless it migrates
            if what == "migrate":
                CLOCK.left = left
            found = attach(*args, **keywords)
            CLOCK.left = left if what != "migrate" else CLOCK.left
            return found

        sys.modules["strop.storage.lake"].attach = attached  # type: ignore[attr-defined]
        CLOCK.left = step
        WORK[what](root)

    return work


def seen(root: Path) -> dict[str, Any]:
    """What a reader finds: the version and every table's rows, as one number each."""
    each = []
    for row in TABLES:
        wanted = ", ".join(c.name for c in columns(row) if (row.TABLE, c.name) != ("policies", "detail"))
        if row.TABLE != "schema_versions":
            each.append(f"SELECT '{row.TABLE}', count(*), bit_xor(hash(({wanted}))) FROM {row.TABLE}")
    with open_console(root) as console:
        found = console.query(" UNION ALL ".join(each)).rows
        versions = console.query("SELECT version FROM schema_versions ORDER BY version").rows
    return {"rows": sorted(found), "versions": [v for (v,) in versions]}


def main(what: str, folder: Path, stride: int) -> None:
    loaded = extensions.connect(Place(folder))
    loaded.execute("SET threads = 1")
    extensions.connect = lambda place: loaded
    before = seen(folder / "template")
    step, died = 0, True
    while died:
        root = folder / f"lake{step}"
        shutil.copytree(folder / "template", root)
        _, status = os.waitpid(in_child(dying_at(what, root, step)), 0)
        died = os.WIFSIGNALED(status)
        after = seen(root)
        _, again = os.waitpid(in_child(dying_at(what, root, 1 << 30)), 0)
        then = seen(root)
        damage = [finding.problem for finding in fsck(root, quick=True).findings if finding.damage]
        line = {
            "step": step if died else None,
            "status": 0 if died else status,
            "versions": after["versions"],
            "rows": after["rows"] == before["rows"],
            "again": again,
            "then": then["versions"],
            "then_rows": then["rows"] == before["rows"],
            "damage": damage,
            "left": sum(1 for path in root.rglob("*") if path.suffix == ".parquet" or path.parent.name == "policies"),
        }
        print(json.dumps(line), flush=True)
        shutil.rmtree(root)
        step += stride


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
