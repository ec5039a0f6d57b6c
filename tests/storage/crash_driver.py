"""Kill a commit at each of its steps, and at a few random moments; print one JSON line for each.

Run as a program of its own: it forks, which a test process with threads must not. The extensions are loaded once,
before the forks, into a DuckDB with a single thread, since that takes longer than all the rest. What is killed is a
child that opens a copy of one lake and commits one shard; what is checked is the lake it leaves, and the lake after
a retry.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lake_rows import ledger, rollouts

from strop.storage import commit as commit_module
from strop.storage import data_files, extensions
from strop.storage.console import open_console
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import write_rows
from strop.storage.place import Place
from strop.storage.tables import Policy, Rollout, Score

COUNTS = """
SELECT (SELECT count(*) FROM rollouts) AS a, (SELECT count(*) FROM scores) AS b,
  (SELECT count(*) FROM stage_runs WHERE key = 'k') AS c, (SELECT status FROM policies) AS d,
  (SELECT sum(rollout_id) FROM rollouts) AS e"""
NOTHING = (0, 0, 0, "candidate", None)
EVERYTHING = (100, 2, 1, "champion", sum(range(1, 101)))


class Clock:
    """Ends the process just before its `at`-th step."""

    left = -1

    def step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any) -> Any:
            self.step()
            return function(*args)

        return stepped


CLOCK = Clock()
STEPS = (
    (commit_module, "to_bytes"),
    (commit_module, "read_footer"),
    (data_files, "make_folder"),
    (data_files, "fsync_all"),
)


class MortalDuckDb:
    """DuckDB's connection; each statement is a step."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.execute = CLOCK.stepping(inner.execute)

    def close(self) -> None:
        self.inner.close()


class MortalSqlite(sqlite3.Connection):
    """The catalog's connection; beginning, making the snapshot, committing and closing are steps."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
        if sql.startswith(("BEGIN", "COMMIT", "INSERT INTO ducklake_snapshot ")):
            CLOCK.step()
        return super().execute(sql, *args)

    def close(self) -> None:
        CLOCK.step()
        super().close()


def commit(lake: Lake) -> int | None:
    file = write_rows(lake.staging / "r.parquet", Rollout, rollouts(100))
    scores = [Score(score_id=i, subject_id=1) for i in (1, 2)]
    return lake.commit(ledger("k"), files={"rollouts": [file]}, rows={"scores": scores}, policy_status={1: "champion"})


def in_child(work: Callable[[], None]) -> int:
    """Run it in a fork; the pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def dying_at(root: Path, step: int) -> Callable[[], None]:
    def work() -> None:
        with open_lake(root) as lake:
            lake._connection = MortalDuckDb(lake._connection)  # type: ignore[assignment]
            sqlite3.connect = partial(sqlite3.connect, factory=MortalSqlite)  # type: ignore[assignment]
            for module, name in STEPS:
                setattr(module, name, CLOCK.stepping(getattr(module, name)))
            CLOCK.left = step
            commit(lake)

    return work


def whole(root: Path) -> None:
    with open_lake(root) as lake:
        commit(lake)


def check(root: Path, what: str) -> None:
    """What a reader sees after the crash, then after a retry."""
    with open_console(root) as console:
        after = console.query(COUNTS).rows[0]
    _, status = os.waitpid(in_child(lambda: whole(root)), 0)
    with open_console(root) as console:
        retried = console.query(COUNTS).rows[0]
        files = [file.path for table in console._catalog.tables.values() for file in table.files]
    on_disk = [str(path) for path in (root / "data/main/rollouts").rglob("*.parquet")]
    print(
        json.dumps(
            {
                "what": what,
                "after": "nothing" if after == NOTHING else "everything" if after == EVERYTHING else str(after),
                "retried": retried == EVERYTHING and status == 0,
                "registered_once": len(files) == len(set(files)) and all(Path(f).is_file() for f in files),
                "rollout_files": len(on_disk),
                "staged": len(list((root / "staging").iterdir())),
            }
        ),
        flush=True,
    )


def main(folder: Path, random_kills: int) -> None:
    template = folder / "template"
    loaded = extensions.connect(Place(folder))
    loaded.execute("SET threads = 1")
    extensions.connect = lambda place: loaded

    def make() -> None:
        policy = Policy(policy_id=1, status="candidate", kind="full", path="p", content_hash="h")
        with open_lake(template, create=True) as lake:
            lake.commit(ledger("policy", stage="train"), rows={"policies": [policy]})

    assert os.waitpid(in_child(make), 0)[1] == 0
    step, died = 0, True
    while died:
        root = folder / f"lake{step}"
        shutil.copytree(template, root)
        _, status = os.waitpid(in_child(dying_at(root, step)), 0)
        died = os.WIFSIGNALED(status)
        check(root, f"step {step}" if died else "no crash")
        step += 1
    kill_at_random(folder, template, random_kills)


def kill_at_random(folder: Path, template: Path, kills: int) -> None:
    dice = random.Random(0)
    for kill in range(kills):
        root = folder / f"random{kill}"
        shutil.copytree(template, root)
        reading, writing = os.pipe()

        def signalled(root: Path = root, writing: int = writing) -> None:
            with open_lake(root) as lake:
                os.write(writing, b"!")
                commit(lake)
                time.sleep(1)

        pid = in_child(signalled)
        os.read(reading, 1)
        time.sleep(dice.uniform(0.0, 0.04))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        check(root, f"random {kill}")
        os.close(reading)
        os.close(writing)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
