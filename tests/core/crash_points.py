"""Where a run can be killed, or find the disk full: points of the loop, a commit, a worker's shard, a training.

A point is `ROUND STEP WHEN WHAT [N]`, such as `1 generate before put` or `2 train after checkpoint 2`: in that round
and step, just before or after the N-th call of WHAT in a process. Nothing in Strop knows of it: the functions are
wrapped in the process that is to die, or in the worker whose parent is to die with it.
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

HERE = {
    "lake": ("strop.storage.layout", "_make_tables"),
    "version": ("strop.storage.layout", "record_version"),
    "base copied": ("strop.core.prepare", "shutil.copytree"),
    "own bytes": ("strop.storage.parquet", "_encode"),
    "bind": ("strop.core.round", "bind"),
    "task": ("strop.core.prepare", "task_for"),
    "base": ("strop.core.prepare", "_made"),
    "base moved in": ("strop.core.prepare", "adopt"),
    "plugin": ("strop.core.execute", "run_plugin"),
    "rollouts handed": ("strop.core.verifying", "handed"),
    "gate": ("strop.core.gating", "run_plugin"),
    "controller": ("strop.core.control", "run_plugin"),
    "examples file": ("strop.core.training", "write_examples"),
    "policy moved in": ("strop.core.training", "adopt"),
    "checkpoint folder renamed": ("strop.storage.checkpoints", "Path.rename"),
    "clearing": ("strop.core.training", "shutil.rmtree"),
    "end of round": ("strop.core.round", "_emit_round"),
    "commit": ("strop.storage.lake", "Lake.commit"),
    "lock": ("strop.storage.locks", "_sign"),
    "status": ("strop.storage.commit", "with_status"),
    "rows": ("strop.storage.commit", "to_bytes"),
    "put": ("strop.storage.data_files", "LocalFiles.put"),
    "flush": ("strop.storage.data_files", "fsync_all"),
    "register": ("strop.storage.commit", "register"),
    "key": ("strop.storage.keys", "add"),
    "checksums": ("strop.storage.commit", "record"),
    "discard": ("strop.storage.lake", "discard"),
    "merge": ("strop.storage.lake", "merge_small_files"),
    "merge checksums": ("strop.storage.upkeep", "note"),
}
"""What is called in the process that drives the run."""
IN_WORKER = {
    "shard": ("strop.core.execute", "execute"),
    "report": ("", "report"),
    "engine": ("strop.core.execute", "engine_for"),
    "verdicts": ("strop.core.execute", "verify"),
    "rows finished": ("strop.core.execute", "finish"),
    "staged file": ("strop.storage.parquet", "write_table"),
    "staged bytes": ("strop.storage.parquet", "_encode"),
    "training": ("strop.core.trainer.train", "train"),
    "policy loaded": ("strop.core.trainer.train", "load_policy"),
    "optimiser step": ("strop.core.trainer.loop", "_optimise"),
    "weights' update": ("torch.optim", "AdamW.step"),
    "checkpoint": ("strop.core.trainer.state", "save_checkpoint"),
    "checkpoint bytes": ("torch", "save"),
    "policy written": ("strop.core.trainer.train", "save_policy"),
    "training result": ("strop.core.trainer.checkpoint", "write_result"),
}
"""What is called in a worker or a trainer."""
SQL = ("BEGIN", "COMMIT")
"""Statements of the writing transaction on the catalog, `sql BEGIN` and `sql COMMIT`."""


@dataclass(frozen=True)
class Point:
    """One place to die."""

    round: int
    step: str
    """Label of the step; `start` before the first one, `step` as WHAT is the whole step."""
    when: str
    what: str
    nth: int = 1

    @classmethod
    def of(cls, text: str) -> Point:
        round, step, when, *words = text.split()
        nth = int(words.pop()) if words[-1].isdecimal() else 1
        what = " ".join(words)
        if when not in ("before", "after") or not (what in HERE or what in IN_WORKER or what in ("step", *_SQL)):
            raise ValueError(f"no point {text!r}")
        return cls(int(round), step, when, what, nth)


_SQL = tuple(f"sql {word}" for word in SQL)


class Trap:
    """Kills at its point; counts calls within the step that is on."""

    def __init__(self, point: Point, die: Callable[[], None]) -> None:
        self.point, self.die = point, die
        self.at: tuple[int, str] = (0, "start")
        self.calls = 0

    def enter(self, round: int, step: str) -> None:
        self.at, self.calls = (round, step), 0

    @property
    def armed(self) -> bool:
        return self.at == (self.point.round, self.point.step)

    def hit(self, when: str) -> None:
        if self.armed and when == self.point.when and self.calls == self.point.nth:
            self.die()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, between two places to die."""

        def wrapped(*args: Any, **keywords: Any) -> Any:
            if self.armed:
                self.calls += 1
            self.hit("before")
            result = function(*args, **keywords)
            self.hit("after")
            return result

        return wrapped

    def wrap(self, module: str, name: str) -> None:
        *owners, last = name.split(".")
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, last, self.around(getattr(owner, last)))


def kill_driver() -> None:
    """The run's process dies; its workers notice."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_both() -> None:
    """The run's process and this worker die at once, as when the machine goes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    """The disk is full."""
    raise OSError(errno.ENOSPC, "No space left on device", "file")


def no_space_for_sqlite() -> None:
    """The disk is full, in the words of the catalog's library."""
    raise sqlite3.OperationalError("database or disk is full")


def arm(point: Point, *, full: bool = False) -> Callable[[str, int, Callable[[], Any]], Any]:
    """Set the trap in this process and in its workers; what `run_loop` is to call its steps with.

    `full`: at the point the disk is full, and nobody is killed.
    """
    from strop.core import workers

    trap = Trap(point, (no_space_for_sqlite if point.what in _SQL else no_space) if full else kill_driver)
    if point.what in HERE:
        trap.wrap(*HERE[point.what])
    elif point.what in _SQL:
        sqlite3.connect = partial(sqlite3.connect, factory=_watched(trap))  # type: ignore[assignment]
    elif point.what in IN_WORKER:
        send = workers.Worker.send

        def armed(self: Any, job: Any, argument: Any) -> None:
            send(self, in_worker, (job, argument, point, full)) if trap.armed else send(self, job, argument)

        workers.Worker.send = armed  # type: ignore[method-assign]

    def call(label: str, round: int, step: Callable[[], Any]) -> Any:
        trap.enter(round, label)
        return trap.around(step)() if point.what == "step" else step()

    return call


def in_worker(packed: tuple[Any, Any, Point, bool], report: Callable[[Any], None]) -> Any:
    """The job, with the trap set for as long as it takes: the worker may be used again in another step."""
    job, argument, point, full = packed
    trap = Trap(point, no_space if full else kill_both)
    trap.enter(point.round, point.step)
    try:
        if point.what == "report":
            return job(argument, trap.around(report))
        module, name = IN_WORKER[point.what]
        if getattr(importlib.import_module(module), name, None) is job:
            return trap.around(job)(argument, report)
        trap.wrap(module, name)
        return job(argument, report)
    finally:
        trap.enter(-1, "")


def _watched(trap: Trap) -> type[sqlite3.Connection]:
    word = trap.point.what.removeprefix("sql ")

    class Watched(sqlite3.Connection):
        writing = False

        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
            self.writing |= sql == "BEGIN IMMEDIATE"
            run = super().execute
            return (trap.around(run) if self.writing and sql.startswith(word) else run)(sql, *args)

    return Watched
