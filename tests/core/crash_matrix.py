"""Kill one run at many points, resume it after each, and print a JSON line for every kill and one for the end.

    python -c "import crash_matrix; crash_matrix.main(RECIPE, FOLDER, POINTS_FILE)"

One process loads what takes long (DuckDB's extensions, torch in the fork server) and forks a child for every life of
the run: the last one's dead, the next one goes on until it reaches its own point. A first child runs the same recipe in
another lake without being disturbed. After every kill the lake is compared with that one: nothing in it may be
different, twice, or gone since the kill before.
"""

from __future__ import annotations

import collections
import json
import multiprocessing.forkserver
import os
import pickle
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_points
from lake_content import content

from strop.core.recipe import load
from strop.core.round import plain_call, run_loop
from strop.core.workers import PRELOAD, SPIN
from strop.storage import extensions, lake, upkeep
from strop.storage.errors import LakeError, StropError
from strop.storage.fsck import fsck
from strop.storage.lake import open_lake
from strop.storage.place import Place

RUN = "crashing"
MERGE_EVERY = 18
"""Commits between two merges of small files, so that a short run has some."""
STATUS = re.compile("'(candidate|champion|retired|rejected)'")


class Shared:
    """The DuckDB connection all children inherit: closing it lets go of the lake only."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.execute = inner.execute

    def close(self) -> None:
        self.inner.execute("USE memory")
        self.inner.execute("DETACH lake")


def prepare(folder: Path, recipe: str) -> None:
    """Load once what every child needs."""
    os.environ.setdefault(*SPIN)
    server = multiprocessing.forkserver
    server.set_forkserver_preload(list(PRELOAD))
    server.ensure_running()
    server._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # a child cannot wait for it
    import pandas  # noqa: F401  # DuckDB loads it with the first parameter it is given
    import pyarrow.parquet  # noqa: F401

    load(recipe)  # its plugins
    loaded = extensions.connect(Place(folder))
    loaded.execute("SET threads = 1")
    extensions.connect = lambda place: Shared(loaded)  # type: ignore[assignment,return-value]
    upkeep.EVERY = lake.EVERY = MERGE_EVERY  # type: ignore[attr-defined]


def in_child(work: Callable[[], None]) -> int:
    """How the fork that did it ended: 0, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def life(recipe: str, root: Path, point: str | None, *, full: bool = False) -> Callable[[], None]:
    """Run, or go on; die at the point, or find the disk full there and leave in `said` what a user is told."""

    def work() -> None:
        call = plain_call if point is None else crash_points.arm(crash_points.Point.of(point), full=full)
        try:
            run_loop(load(recipe), lake=root, run_id=RUN, call=call)
        except StropError as error:
            (root.parent / "said").write_text(str(error))

    return work


def rows_of(root: Path) -> dict[str, list[str]]:
    """Every row; of a policy without its status, which changes. Nothing where the lake is not whole yet."""
    try:
        found = content(root)
    except LakeError as error:
        if "never finished being made" not in str(error):
            raise
        return {}
    return found | {"policies": [STATUS.sub("'some status'", row) for row in found["policies"]]}


def ledger_of(root: Path) -> set[str]:
    """The ledger with its clocks: work that is done again has others."""
    with open_lake(root, read_only=True) as opened:
        return set(map(repr, opened.query("SELECT * FROM stage_runs")))


def compare(root: Path, folder: Path) -> dict[str, int]:
    """How the lake differs from the undisturbed one's, and from itself at the kill before."""
    plain = {t: collections.Counter(rows) for t, rows in pickle.loads((folder / "plain.pickle").read_bytes()).items()}
    before: set[str] = pickle.loads((folder / "ledger.pickle").read_bytes())
    found = {t: collections.Counter(rows) for t, rows in rows_of(root).items()}
    ledger = ledger_of(root) if found else set()
    (folder / "ledger.pickle").write_bytes(pickle.dumps(ledger))
    return {
        "strange": sum((rows - plain[table]).total() for table, rows in found.items()),
        "undone": len(before - ledger),
        "shards": len(ledger),
        "rollouts": found.get("rollouts", collections.Counter()).total(),
    }


def told(folder: Path, root: Path, **more: Any) -> None:
    """Print what a fork finds in the lake."""

    def look() -> None:
        there = (root / "catalog.sqlite").is_file()
        print(json.dumps({**more, **(compare(root, folder) if there else {})}), flush=True)

    assert in_child(look) == 0


def main(recipe: str, folder: Path, points: list[str], how: str = "kill") -> None:
    """See above; the undisturbed run's lake is FOLDER/plain, the other one FOLDER/lake. HOW: `kill`, or disk `full`."""
    prepare(folder, recipe)
    plain, root = folder / "plain", folder / "lake"
    assert in_child(life(recipe, plain, None)) == 0
    (folder / "ledger.pickle").write_bytes(pickle.dumps(set()))
    assert in_child(lambda: (folder / "plain.pickle").write_bytes(pickle.dumps(rows_of(plain))) and None) == 0  # type: ignore[func-returns-value]
    for point in points:
        started = time.perf_counter()
        (folder / "said").write_text("")
        ended = in_child(life(recipe, root, point, full=how == "full"))
        said = (folder / "said").read_text()
        told(folder, root, point=point, ended=ended, said=said, seconds=round(time.perf_counter() - started, 2))
        if not (ended or said):
            break
    ended = in_child(life(recipe, root, None))
    told(folder, root, point=None, ended=ended, seconds=0.0)

    def last() -> None:
        here, there = content(root), content(plain)
        damage = [finding.problem for finding in fsck(root).findings if finding.damage]
        ids = len(set(here["rollouts"]))
        print(
            json.dumps(
                {
                    "different": [table for table in there if here[table] != there[table]],
                    "tables": len(there),
                    "rollouts": len(here["rollouts"]),
                    "distinct": ids,
                    "expected": len(there["rollouts"]),
                    "staged": len(list((root / "staging").rglob("*.parquet"))),
                    "damage": damage,
                }
            ),
            flush=True,
        )

    assert in_child(last) == 0
