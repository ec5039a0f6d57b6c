"""The interactive console in a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_lake
from terminal import Terminal
from tiny_loop import clean_env

from strop.storage.lake import open_lake
from strop.storage.ready_views import READY
from strop.storage.tables import TABLES, StageRun

COMMAND = [sys.executable, "-m", "strop.flows", "sql", "--lake"]
LONG = "SELECT count(*) FROM range(1000000000000) WHERE range % 7 = 3"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_lake.make(tmp_path_factory.mktemp("shell") / "lake")


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "lake")
    return tmp_path / "lake"


@pytest.fixture
def shell(root: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A console at its first prompt; `less` pages."""
    env = clean_env(XDG_STATE_HOME=str(tmp_path / "state"), PAGER="less", LESS="")
    with Terminal([*COMMAND, str(root)], env) as opened:
        assert f"{len(TABLES) + len(READY)} tables and views" in opened.until("lake>")
        yield opened


def test_a_session_from_question_to_answer(shell: Terminal, root: Path, tmp_path: Path) -> None:
    shell.type("SELECT 41 + 1\r")
    shell.until("...")
    shell.type("AS answer;\r")
    assert "answer\n------\n    42\n1 row, " in shell.until(" ms\n")
    shell.until("lake>")

    shell.type("SELECT nope FROM runs;\r")
    shell.until('error: the query failed: Binder Error: Referenced column "nope" not found')
    shell.until("lake>")

    shell.type("\\d runs\r")
    assert "recipe_json" in shell.until("sources_json")
    shell.until("lake>")
    shell.type("\\l\r")
    shell.until("last_commit")
    shell.until("lake>")

    shell.type("\\asof a@1\r")
    shell.until("every statement sees snapshot")
    shell.until("lake@a@1>")
    shell.type("SELECT 'top is ' || max(round) AS r FROM metrics;\r")
    shell.until("\ntop is 1\n")
    shell.type("\\asof newest\r")
    shell.until("each statement sees the newest snapshot")
    shell.type("SELECT 'top is ' || max(round) AS r FROM metrics;\r")
    shell.until("\ntop is 2\n")

    shell.type(f"\\o {tmp_path}/out.parquet\r")
    shell.until("the next result goes to")
    shell.type("SELECT 1 AS n; SELECT 'here' || 'after' AS t;\r")
    shell.until("1 row to ")
    shell.until("\nhereafter\n")
    assert (tmp_path / "out.parquet").read_bytes()[:4] == b"PAR1"

    shell.type("\\q\r")
    assert shell.process.wait(30) == 0
    history = tmp_path / "state" / "strop" / "sql_history"
    assert "+SELECT 41 + 1\n+AS answer;\n" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_tab_completes_and_the_arrow_recalls(shell: Terminal) -> None:
    shell.type("SELECT count(*) AS found FROM v_roun\t")
    shell.until("v_rounds")
    shell.type(";\r")
    shell.until("found\n-----\n")
    shell.until("lake>")
    shell.type("\x1b[A")
    shell.until("v_rounds;")
    shell.type("\r")
    shell.until("found\n-----\n")


def test_ctrl_c_cancels_the_query_and_not_the_session(shell: Terminal) -> None:
    shell.type(f"{LONG};\r")
    time.sleep(1.0)
    shell.type("\x03")
    shell.until("cancelled")
    shell.until("lake>")
    shell.type("SELECT 'half a")
    shell.until("half a")
    shell.type("\x03")
    shell.until("lake>")
    shell.type("SELECT 'still ' || 'here' AS t;\r")
    shell.until("\nstill here\n")
    shell.until("lake>")
    shell.type("\x04")
    assert shell.process.wait(30) == 0


def test_what_is_longer_than_the_screen_goes_through_the_pager(shell: Terminal) -> None:
    shell.type("SELECT 'row ' || range AS r FROM range(100000);\r")
    page = shell.until("\n:")
    assert "row 0\n" in page
    assert "row 50" not in page
    shell.type("\x03")  # for the pager, which rings
    shell.until("\x07")
    for _ in range(10):
        shell.type("q")  # which it forgets if it has not begun to listen again
        with contextlib.suppress(AssertionError):
            shell.until("lake>", timeout_s=3)
            break
    shell.type("SELECT 'back ' || 'again' AS t;\r")
    shell.until("\nback again\n")


def test_each_statement_sees_the_newest_snapshot(shell: Terminal, root: Path) -> None:
    count = "SELECT 'there are ' || count(*) AS n FROM stage_runs WHERE stage = 'new';\r"
    shell.type(count)
    shell.until("\nthere are 0\n")
    with open_lake(root) as lake:
        lake.commit(
            StageRun(
                run_id="a", round=3, stage_run_id=99, key="new", stage="new", kind="verify", shard=0, shards=1,
                plugin="p", plugin_version="1", config_json="{}", upstream=[], seed=1, rows_json="{}",
            )
        )  # fmt: skip
    shell.until("lake>")
    shell.type(count)
    shell.until("\nthere are 1\n")


def test_one_question_on_a_terminal_is_paged_and_squeezed_too(root: Path) -> None:
    env = clean_env(PAGER="less", LESS="")
    with Terminal([*COMMAND, str(root), "SELECT range FROM range(1000)"], env) as paged:
        paged.until("\n:")
        paged.type("q")
        assert paged.process.wait(30) == 0
    wide = "SELECT repeat('x', 70) AS a, repeat('y', 70) AS b"
    with Terminal([*COMMAND, str(root), wide], env) as squeezed:
        out = squeezed.until("1 row\n")
    assert max(map(len, out.splitlines())) == 80
    done = subprocess.run([*COMMAND, str(root), wide], env=env, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) == 142
