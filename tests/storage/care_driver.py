"""Kill a piece of upkeep just before each of its steps, and print one JSON line for each: care_driver.py WHAT FOLDER.

FOLDER holds `template`, a lake; for each step a copy of it is worked on in a fork that dies there. WHAT is `migrate`,
`merge` or `gc`. See `crash_driver` for why this is a program of its own.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash_driver import Mortal, in_child

from strop.storage import extensions, layout, leftovers, migrations, pruning, snapshots, upkeep
from strop.storage import gc as collect
from strop.storage.console import open_console
from strop.storage.data_files import LocalFiles
from strop.storage.fsck import fsck
from strop.storage.lake import open_lake
from strop.storage.place import place_of
from strop.storage.tables import TABLES, columns

STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "migrate": ((upkeep, "fsync"),),
    "merge": ((upkeep, "note"),),
    "gc": (
        (collect, "merge_small_files"),
        (collect, "catch_up"),
        (collect, "stored_files"),
        (pruning, "with_changes"),
        (pruning, "register"),
        (pruning, "record"),
        (snapshots, "expire"),
        (leftovers.shutil, "rmtree"),
        (LocalFiles, "delete"),
    ),
}
"""Functions before each call of which a process may die, besides the statements of its connection."""


def migrate(root: Path, arm: Callable[[Any], Any]) -> None:
    """Open an older lake; the connection is armed once it is attached."""
    plain = migrations.migrate
    layout.migrate = lambda connection, place: plain(arm(connection), place)
    open_lake(root).close()


def merge(root: Path, arm: Callable[[Any], Any]) -> None:
    with open_lake(root) as lake, lake.exclusive() as connection:
        upkeep.merge_small_files(arm(connection), place_of(root), rollouts=True)


def gc(root: Path, arm: Callable[[Any], Any]) -> None:
    """Everything at once; old snapshots and rejected policies included."""
    arm(None)
    wishes = collect.Wishes(older_than=datetime.timedelta(), keep_snapshots=3, checkpoints="not-champion")
    collect.gc(root, wishes)


WORK = {"migrate": migrate, "merge": merge, "gc": gc}


def dying_at(what: str, root: Path, step: int) -> Callable[[], None]:
    def work() -> None:
        def arm(connection: Any) -> Any:
            mortal = Mortal(connection, step)
            for module, name in STEPS[what]:
                setattr(module, name, mortal.stepping(getattr(module, name)))
            return mortal

        WORK[what](root, arm)

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


def main(what: str, folder: Path) -> None:
    loaded = extensions.connect()
    loaded.execute("SET threads = 1")
    extensions.connect = lambda: loaded
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
        line = {
            "step": step if died else None,
            "status": 0 if died else status,
            "versions": after["versions"],
            "rows": after["rows"] == before["rows"],
            "again": again,
            "then": then["versions"],
            "then_rows": then["rows"] == before["rows"],
            "findings": [finding.problem for finding in fsck(root, quick=True).findings if finding.damage],
            "left": sum(1 for path in root.rglob("*") if path.suffix == ".parquet" or path.parent.name == "policies"),
        }
        print(json.dumps(line), flush=True)
        shutil.rmtree(root)
        step += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
