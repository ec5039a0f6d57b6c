"""Ways for `strop run` to end too early: signals, a worker out of memory, a disk really full, a locked catalog."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
from lake_content import content
from test_crash_matrix import small

from strop.storage import catalog_db
from strop.storage.errors import LakeError, is_interrupt
from strop.storage.lake import open_lake

STROP = [sys.executable, "-m", "strop.flows"]
ENOUGH = re.compile("disk is full|free some space|make room")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a dozen shards a round, so that one of them is always at work."""
    path = small(tmp_path_factory.mktemp("endings"))
    path.write_text(path.read_text().replace("shard_rollouts: 160", "shard_rollouts: 32"))
    return path


def line(recipe: Path, lake: Path) -> list[str]:
    return [*STROP, "run", str(recipe), "--run-id", "r", "--lake", str(lake), "--no-prefect", "--json"]


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Any:
    lake = recipe.parent / "plain"
    subprocess.run(line(recipe, lake), check=True, capture_output=True)
    return content(lake)


def ended(recipe: Path, lake: Path, at: tuple[str, int], end: Callable[[psutil.Process], None]) -> tuple[int, str]:
    """Run until the first progress of that stage and round, `end` it; exit code and what was said.

    Every process it had started is gone a little later.
    """
    with subprocess.Popen(
        line(recipe, lake), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            event = json.loads(text)
            if (event["kind"], event["stage"], event["round"]) == ("progress", *at):
                break
        others = psutil.Process(process.pid).children(recursive=True)
        end(psutil.Process(process.pid))
        _, said = process.communicate(timeout=60)
    assert len(others) >= 2
    assert psutil.wait_procs(others, timeout=10)[1] == []
    return process.returncode, said


def worker_of(process: psutil.Process) -> psutil.Process:
    """One that works: a child of the fork server."""
    return next(p for child in process.children() for p in child.children())


@pytest.mark.slow
def test_signals_and_a_worker_killed_for_memory_end_a_run_cleanly_and_the_same_line_goes_on(
    recipe: Path, undisturbed: Any, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    code, said = ended(recipe, lake, ("generate", 1), lambda process: process.terminate())
    assert code == 130
    assert "interrupted; what was committed stays. To go on:\n  strop run " in said
    code, said = ended(recipe, lake, ("train", 1), lambda process: os.killpg(process.pid, signal.SIGINT))
    assert code == 130
    assert "Traceback" not in said
    code, said = ended(recipe, lake, ("generate", 2), lambda process: worker_of(process).kill())
    assert code == 1
    assert re.search(r"error: round 2, generate: shard \d+ of 1\d: a worker process ended by signal SIGKILL", said)
    assert "out of memory? free some, or lower `workers`" in said
    assert "Traceback" not in said
    done = subprocess.run(line(recipe, lake), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert content(lake) == undisturbed


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_run_on_a_disk_that_is_full_again_and_again_says_so_and_ends_equal(
    recipe: Path, undisturbed: Any, little_disk: Path
) -> None:
    lake, size, stopped = little_disk / "lake", 500, []
    while (done := subprocess.run(line(recipe, lake), capture_output=True, text=True)).returncode:
        assert done.returncode == 1, done.stderr
        assert ENOUGH.search(done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        stopped.append(done.stderr)
        size += 400
        subprocess.run(["mount", "-o", f"remount,size={size}k", little_disk], check=True)
        assert size < 20_000
    assert len(stopped) >= 3
    assert content(lake) == undisturbed


def test_an_interrupt_within_a_statement_of_duckdb_is_an_interrupt() -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(RuntimeError, match="interrupted") as raised:
            duckdb.sql(
                "SELECT count(*) FROM range(3000000) a, range(30000) b WHERE a.range * b.range % 7 = 3"
            ).fetchall()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert is_interrupt(raised.value)
    assert not is_interrupt(RuntimeError("another"))


HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def held(root: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that has the catalog in a writing transaction."""
    arguments = [sys.executable, "-c", HOLD, str(root / "catalog.sqlite"), str(seconds)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_waits_for_a_catalog_that_another_process_has_locked(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.write(tmp_path)
    tiny.run(recipe, tmp_path, rounds=1)
    started = time.monotonic()
    with held(tmp_path / "lake", 1.5):
        tiny.run(recipe, tmp_path, rounds=2)
        assert time.monotonic() - started > 1


def test_a_catalog_locked_for_too_long_is_named_and_the_run_goes_on_later(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.write(tmp_path)
    tiny.run(recipe, tmp_path, rounds=1)
    monkeypatch.setattr(catalog_db, "BUSY_TIMEOUT_S", 0.3)
    with held(tmp_path / "lake", 60) as holder:
        with pytest.raises(LakeError, match=r"catalog\.sqlite.*locked.*run the same command again"):
            tiny.run(recipe, tmp_path, rounds=2)
        with open_lake(tmp_path / "lake", read_only=True) as lake:
            assert lake.query("SELECT max(round) FROM stage_runs") == [(1,)], "readers do not wait"
        holder.kill()
    assert tiny.run(recipe, tmp_path, rounds=2).rounds == 2
    tiny.run(recipe, tmp_path / "other")
    assert content(tmp_path / "lake") == content(tmp_path / "other" / "lake")
    assert sqlite3.connect(tmp_path / "lake" / "catalog.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
