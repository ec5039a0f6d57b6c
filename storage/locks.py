"""Locks between processes: one committer at a time, one process a run. The OS lets go of them on kill -9.

Each lock is a file under `locks/`, held by flock; a JSON file beside it says who holds it, for the error message.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from strop.storage.errors import LakeError

PATIENCE_S = 5.0
"""Wait this long for the commit lock before saying so."""
LIMIT_S = 600.0
"""Give up on the commit lock after this long: a commit takes milliseconds."""

log = logging.getLogger("strop.lake")


@contextlib.contextmanager
def commit_lock(root: Path) -> Iterator[None]:
    """Hold the lake's one exclusive lock: DuckLake on SQLite crashes under two writers.

    Raises LakeError when another process holds it for longer than `LIMIT_S`.
    """
    path = root / "locks" / "commit.lock"
    lock = FileLock(path, poll_interval=0.01)
    started = time.monotonic()
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        log.warning("waiting for the commit lock of %s, held by %s", root, _holder(path))
        try:
            lock.acquire(timeout=LIMIT_S - PATIENCE_S)
        except Timeout:
            waited = time.monotonic() - started
            raise LakeError(
                f"waited {waited:.0f} s to commit to {root}, whose lock is held by {_holder(path)}; nothing was "
                f"written. If that process hangs, end it (the lock goes with it) and run the same command again"
            ) from None
    try:
        _sign(path)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def run_lock(root: Path, run_id: str) -> Iterator[None]:
    """Hold a run, so that no second process drives it. Raises LakeError at once when a live process does."""
    path = root / "locks" / f"run-{run_id.replace(os.sep, '_')}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise LakeError(
            f"run {run_id!r} is already being driven by {_holder(path)}; wait for it, or stop that process first"
        ) from None
    except OSError as error:
        raise LakeError(f"cannot lock run {run_id!r} with {path}: {error}; make its folder writable") from error
    try:
        _sign(path)
        yield
    finally:
        lock.release()


def is_driven(root: Path) -> bool:
    """Whether a live process of this machine drives some run of the lake."""
    return any(_is_held(path) for path in (root / "locks").glob("run-*.lock"))


def _is_held(path: Path) -> bool:
    try:
        who = json.loads(path.with_suffix(".json").read_text())
        if who["host"] == socket.gethostname() and not psutil.pid_exists(who["pid"]):
            return False  # known without touching the lock, which a starting run may want in this moment
        with path.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except (OSError, ValueError, KeyError):
        return False


def _sign(path: Path) -> None:
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    path.with_suffix(".json").write_text(json.dumps(who))


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.with_suffix(".json").read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError):  # it got the lock a moment ago and has not signed yet
        return "another process"
