"""Locks between processes: who holds one is named, and a killed holder lets go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from strop.storage import locks
from strop.storage.errors import LakeError
from strop.storage.locks import commit_lock, run_lock

HOLDER = """
import sys
from pathlib import Path
from strop.storage import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(*arguments: object) -> subprocess.Popen[str]:
    """Another process that holds a lock until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_held_by_another_process_names_it_and_is_free_after_its_death(tmp_path: Path) -> None:
    with hold("run_lock", tmp_path, "a/b-s0") as holder:
        with pytest.raises(LakeError) as raised, run_lock(tmp_path, "a/b-s0"):
            pass
        for said in (f"process {holder.pid}", socket.gethostname(), "since 20", "'a/b-s0'"):
            assert said in str(raised.value)
        with run_lock(tmp_path, "another"):
            pass
        holder.kill()
        holder.wait()
        with run_lock(tmp_path, "a/b-s0"):
            pass


def test_a_run_is_held_once_within_a_process_too(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path, "r"),
        pytest.raises(LakeError, match=f"process {os.getpid()}"),
        run_lock(tmp_path, "r"),
    ):
        pass
    with run_lock(tmp_path, "r"):
        pass


def test_a_long_wait_for_the_commit_lock_is_said_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(locks, "PATIENCE_S", 0.02)
    monkeypatch.setattr(locks, "LIMIT_S", 0.05)
    with hold("commit_lock", tmp_path) as holder:
        with (
            pytest.raises(LakeError, match=f"held by process {holder.pid} .*nothing was written"),
            commit_lock(tmp_path),
        ):
            pass
        assert f"waiting for the commit lock of {tmp_path}, held by process {holder.pid}" in caplog.text
        holder.kill()
        holder.wait()
    with commit_lock(tmp_path):
        pass


def test_a_place_that_cannot_hold_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file where the folder should be")
    with pytest.raises(LakeError, match=r"cannot lock run 'r' with .*locks"), run_lock(tmp_path, "r"):
        pass
