"""Locks between processes: one committer at a time, one process a run. They are let go of on kill -9.

Each lock is a file under `locks/`, held by flock; a JSON file beside it says who holds it, for the error message.
Where several machines share a PostgreSQL catalog, it is an advisory lock there (see `advisory`).
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
from strop.storage.place import place_of, run_lock_name

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
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_held(root, "commit", PATIENCE_S))
        except TimeoutError as busy:
            log.warning("waiting for the commit lock of %s, held by %s", root, busy)
            try:
                stack.enter_context(_held(root, "commit", LIMIT_S - PATIENCE_S))
            except TimeoutError as still:
                waited = time.monotonic() - started
                raise LakeError(
                    f"waited {waited:.0f} s to commit to {root}, whose lock is held by {still}; nothing was "
                    f"written. If that process hangs, end it (the lock goes with it) and run the same command again"
                ) from None
        yield


@contextlib.contextmanager
def run_lock(root: Path, run_id: str) -> Iterator[None]:
    """Hold a run, so that no second process drives it. Raises LakeError at once when a live process does."""
    name = run_lock_name(run_id)
    with contextlib.ExitStack() as stack:
        try:
            (root / "locks").mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(root, name, 0))
        except TimeoutError as busy:
            raise LakeError(
                f"run {run_id!r} is already being driven by {busy}; wait for it, or stop that process first"
            ) from None
        except OSError as error:
            raise LakeError(f"cannot lock run {run_id!r} with {root / 'locks'}: {error}; make it writable") from error
        yield


@contextlib.contextmanager
def _held(root: Path, name: str, wait_s: float) -> Iterator[None]:
    """Hold one lock. Raises TimeoutError whose text is the holder when it is not free within `wait_s`."""
    place = place_of(root)
    if place.catalog:
        from strop.storage import advisory

        with advisory.held(place, name, wait_s=wait_s):
            yield
        return
    path = root / "locks" / f"{name}.lock"
    lock = FileLock(path, poll_interval=0.01)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise TimeoutError(_holder(path)) from None
    try:
        _sign(path)
        yield
    finally:
        lock.release()


def is_driven(root: Path) -> bool:
    """Whether a live process may be driving some run of the lake."""
    if place_of(root).catalog:  # its runs may be driven on any machine
        return True
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
