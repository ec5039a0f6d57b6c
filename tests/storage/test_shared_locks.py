"""Locks of a lake that several machines share: one holder anywhere, named to who waits, gone when it is killed."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from strop.flows.runs import driver
from strop.storage import locks
from strop.storage.catalog_db import open_catalog_db
from strop.storage.errors import CatalogError, LakeError
from strop.storage.locks import commit_lock, run_lock
from strop.storage.place import Place, place_of

HOLD = """
import sys, time
from pathlib import Path
from strop.storage import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:]):
    print("held", flush=True)
    time.sleep(120)
"""


@contextlib.contextmanager
def hold(which: str, root: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    command = [sys.executable, "-c", HOLD, which, str(root), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_run_is_driven_from_one_machine_and_freed_by_a_kill(machines) -> None:
    with hold("run_lock", machines.a, "r") as other:
        holder = f"process {other.pid} on {socket.gethostname()} since 20"
        with pytest.raises(LakeError, match=f"run 'r' is already being driven by {holder}"), run_lock(machines.b, "r"):
            pass
        with run_lock(machines.b, "another"):
            assert driver(machines.b, "r")["pid"] == other.pid  # type: ignore[index]
        other.kill()
        other.wait()
        until = time.monotonic() + 10
        while driver(machines.b, "r") is not None and time.monotonic() < until:
            time.sleep(0.02)  # the server is told by the closed connection, a moment later
        with run_lock(machines.b, "r"):
            pass
    assert driver(machines.b, "r") is None


def test_who_waits_to_commit_is_told_for_whom(machines, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.2)
    monkeypatch.setattr(locks, "LIMIT_S", 0.5)
    with hold("commit_lock", machines.a) as other:
        with (
            caplog.at_level(logging.WARNING, "strop.lake"),
            pytest.raises(LakeError, match=rf"waited \d+ s.*process {other.pid} on .*nothing was written"),
            commit_lock(machines.b),
        ):
            pass
        assert f"held by process {other.pid}" in caplog.text
    with commit_lock(machines.b), run_lock(machines.b, "r"), pytest.raises(LakeError), run_lock(machines.a, "r"):
        pass


KILL = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name LIKE 'strop %'"


def test_a_lost_session_loses_the_lock_and_no_more(machines) -> None:
    """As when the server is started anew: what was done under the lock stands, and the next use connects again."""
    with psycopg.connect(machines.catalog, autocommit=True) as admin:
        with commit_lock(machines.a):
            assert admin.execute(KILL).fetchall()
        for _ in range(2):  # the second time they are killed while nobody uses them
            with commit_lock(machines.a), open_catalog_db(place_of(machines.a), write=False) as db:
                assert db.execute("SELECT 1 AS one")[0]["one"] == 1
            assert admin.execute(KILL).fetchall()


VALUE = "50% ':no' é"
ADD = "INSERT INTO ducklake_metadata (key, value) VALUES (:key, :value)"
COUNT = "SELECT count(*) AS n FROM ducklake_metadata WHERE key = :key"
READ = "SELECT value, '%:a' AS plain FROM ducklake_metadata WHERE key = :key"
DELETE = "DELETE FROM ducklake_metadata WHERE key = 'k:1'"


@pytest.fixture(params=["sqlite", "postgres"])
def place(request) -> Place:
    root = request.getfixturevalue("lake").root if request.param == "sqlite" else request.getfixturevalue("machines").a
    return place_of(root)


def test_a_transaction_of_the_catalog_is_seen_whole_after_it_or_not_at_all(place: Place) -> None:
    with open_catalog_db(place, write=True) as db:
        assert db.execute(ADD, {"key": "k:1", "value": VALUE}) == []
        with open_catalog_db(place, write=False) as reader:
            assert reader.execute(COUNT, {"key": "k:1"})[0]["n"] == 0
    with pytest.raises(ZeroDivisionError):
        fail_after(place, DELETE, ZeroDivisionError())
    with pytest.raises(CatalogError, match=r"cannot write the catalog .*no_such_column"):
        fail_after(place, DELETE, "SELECT no_such_column FROM ducklake_snapshot")
    with open_catalog_db(place, write=False) as db:
        found = db.execute(READ, {"key": "k:1"})
        assert [(row["value"], row["plain"]) for row in found] == [(VALUE, "%:a")]


def test_a_reader_of_the_catalog_cannot_write(place: Place) -> None:
    with pytest.raises(CatalogError, match="cannot read the catalog"), open_catalog_db(place, write=False) as db:
        db.execute(ADD, {"key": "x", "value": ""})


def fail_after(place: Place, sql: str, failure: str | Exception) -> None:
    with open_catalog_db(place, write=True) as db:
        db.execute(sql)
        if isinstance(failure, Exception):
            raise failure
        db.execute(failure)


OTHER = """
import sys
from pathlib import Path
from strop.storage.catalog_db import open_catalog_db
from strop.storage.place import Place, place_of
with open_catalog_db(place_of(Path(sys.argv[1])), write=True) as db:
    print(db.execute("SELECT value FROM ducklake_metadata WHERE key = 'turn'")[0]["value"])
"""
WAITING = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def test_a_writer_waits_for_another_and_sees_what_it_did(machines) -> None:
    with open_catalog_db(place_of(machines.a), write=True) as db:
        process = subprocess.Popen([sys.executable, "-c", OTHER, machines.b], stdout=subprocess.PIPE, text=True)
        while not db.execute(WAITING)[0]["n"]:
            assert process.poll() is None
        db.execute(ADD, {"key": "turn", "value": "mine first"})
    assert process.communicate(timeout=60)[0] == "mine first\n"
