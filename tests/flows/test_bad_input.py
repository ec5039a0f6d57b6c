"""Bad input through the command line: one clear message, an exit code, and a lake that is as it was."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_loop import clean_env, write_tiny

from strop.storage.console import open_console
from strop.storage.ids import shard_number
from strop.storage.lake import open_lake
from strop.storage.tables import SCHEMA_VERSION, SchemaVersion, StageRun

STROP = [sys.executable, "-m", "strop.flows"]


def strop(*arguments: str, cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STROP, *arguments], cwd=cwd, env=clean_env(), capture_output=True, text=True, check=False, **more
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def ran_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_tiny(folder)
    done = strop("run", "tiny.yaml", "--run-id", "t", "--rounds", "1", "--no-prefect", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(ran_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran_once, tmp_path / "copy"))


def rollouts(folder: Path) -> int:
    with open_console(folder / "lake") as console:
        return int(console.query("SELECT count(*) FROM rollouts").rows[0][0])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("generate.n=many", ["tiny.yaml:11", "n: ", "integer", "'many'"]),
        ("generate.m=3", ["unknown key 'm'"]),
        ("verfy.x=1", ["no 'verfy'; did you mean 'verify'?"]),
        ("select.use=unifrom", ["no select plugin 'unifrom'; did you mean 'uniform'?"]),
    ],
)
def test_a_wrong_key_type_or_plugin_is_refused_before_anything_runs(
    here: Path, override: str, words: list[str]
) -> None:
    before = rollouts(here)
    done = strop("run", "tiny.yaml", "--run-id", "t", "--no-prefect", "--set", override, cwd=here)
    refused(done, 2, "tiny.yaml" if "use" in override or "n=" in override else "", *words)
    assert rollouts(here) == before


def test_a_lake_made_by_a_newer_strop_is_left_alone(here: Path) -> None:
    newer = StageRun(
        run_id="",
        stage_run_id=shard_number("", 0, "migrate", 0),
        key="migrate-99",
        stage="migrate",
        kind="migrate",
        shard=0,
        shards=1,
        plugin="",
        plugin_version="",
        config_json="{}",
        upstream=[],
        seed=0,
        rows_json="{}",
    )
    row = SchemaVersion(stage_run_id=newer.stage_run_id, version=SCHEMA_VERSION + 1, strop_version="99.0")
    with open_lake(here / "lake") as lake:
        lake.commit(newer, rows={"schema_versions": [row]})
    refused(strop("run", "tiny.yaml", "--run-id", "t", "--no-prefect", cwd=here), 1, "newer Strop", "pip install")
    refused(strop("status", cwd=here), 1, "newer Strop")


def test_a_full_disk_stops_the_run_with_what_to_do_and_the_same_line_goes_on(here: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = (here / "lake" / "catalog.sqlite").stat().st_size + 4096
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    line = ("run", "tiny.yaml", "--run-id", "t", "--no-prefect", "--rounds", "3")
    before = rollouts(here)
    done = strop(*line, cwd=here, preexec_fn=limit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert rollouts(here) >= before
    again = strop(*line, cwd=here)
    assert again.returncode == 0, again.stderr
    assert rollouts(here) > before


def test_a_second_run_of_a_live_run_id_is_refused_and_the_first_is_not_disturbed(here: Path) -> None:
    slow = (
        (here / "ask.py")
        .read_text()
        .replace("    return rollouts\n", "    __import__('time').sleep(20)\n    return rollouts\n")
    )
    assert "sleep" in slow
    (here / "ask.py").write_text(slow)
    line = [*STROP, "run", "tiny.yaml", "--run-id", "t", "--no-prefect", "--rounds", "2"]
    with subprocess.Popen(line, cwd=here, env=clean_env(), stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            for text in first.stdout:
                if "select" in text:
                    break
            refused(strop(*line[3:], cwd=here), 1, str(first.pid), "'t'")
            assert first.poll() is None
        finally:
            os.kill(first.pid, signal.SIGINT)
            deadline = time.monotonic() + 20
            while first.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            first.kill()
    assert first.returncode == 130


def test_a_lake_that_is_no_lake_is_named(here: Path) -> None:
    refused(strop("status", "--lake", "nowhere", cwd=here), 1, "nowhere", "strop run")
    refused(strop("sql", "--lake", "nowhere", "SELECT 1", cwd=here), 1, "nowhere")
