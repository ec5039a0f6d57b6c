"""The loop under Prefect: what its UI shows, what survives a kill, and what it costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_api import api, eventually, flow_run, flow_runs, task_runs
from tiny_loop import Strop, clean_env

from strop.flows import server

STALL = '''"""Waits for ever.

Source: none.
"""

import time

from strop.core.plugin import Config, stage


class Stall(Config):
    """No settings."""


@stage("evaluate")
def stall(config: Stall, *, rollouts, round) -> list:
    """Waits from round 1 on."""
    open("stalled", "a").close() if round else None
    time.sleep(60 if round else 0)
    return []
'''


@pytest.fixture
def under(prefect_home: Path) -> dict[str, str]:
    """The environment of a command that uses the session's server."""
    info = server.find(prefect_home)
    assert info is not None
    return clean_env(PREFECT_API_URL=info.url, PREFECT_HOME=str(prefect_home / ".prefect"))


@pytest.fixture
def info(prefect_home: Path) -> server.ServerInfo:
    """The session's server."""
    found = server.find(prefect_home)
    assert found is not None
    return found


@pytest.fixture
def stalled(tiny: Path, under: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A run under Prefect that hangs in the last stage of round 1."""
    (tiny.parent / "stall.py").write_text(STALL)
    tiny.write_text(tiny.read_text() + '  - evaluate: "./stall.py:stall"\n')
    command = [sys.executable, "-m", "strop.flows", "run", str(tiny), "--run-id", tiny.parent.name]
    process = subprocess.Popen(
        command, cwd=tiny.parent, env=under, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert eventually((tiny.parent / "stalled").exists, 60)
    yield process
    process.kill()
    process.communicate()


def test_every_stage_of_a_round_is_a_task_run_and_the_log_tells_the_rounds_and_a_second_run_does_nothing_again(
    tiny: Path, strop: Strop, under: dict[str, str], info: server.ServerInfo
) -> None:
    done = strop("run", tiny, "--run-id", "shown", "--rounds", "1", env=under)
    assert done.returncode == 0, done.stderr
    run = flow_run(info, "shown")
    assert run["state_name"] == "Completed"
    assert run["parameters"]["run_id"] == "shown"
    stages = ["select", "generate", "verify", "filter", "heldout", "heldout.verify", "evaluate"]
    wanted = {f"r1 {stage}" for stage in stages} | {"r0 base", "r0 task.sums", "r0 heldout"}
    assert eventually(lambda: wanted <= task_runs(info, run).keys()), task_runs(info, run)
    assert eventually(lambda: set(task_runs(info, run).values()) == {"Completed"}), task_runs(info, run)
    texts = [log["message"] for log in api(info, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})]
    assert any(text.startswith("round 1 done") for text in texts), texts
    assert "Flow run" not in done.stdout + done.stderr
    again = strop("run", tiny, "--run-id", "shown", "--rounds", "1", env=under)
    assert again.returncode == 0, again.stderr
    assert "r1 evaluate already in the lake" in again.stdout


def test_a_failing_stage_fails_the_flow_run_and_is_one_clean_message(
    tiny: Path, strop: Strop, under: dict[str, str], info: server.ServerInfo
) -> None:
    plugin = tiny.parent / "short.py"
    plugin.write_text(plugin.read_text().replace("    passed = {", "    raise ValueError('no luck')\n    passed = {"))
    done = strop("run", tiny, "--run-id", "failing", env=under)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: round 1, filter: filter plugin 'short' failed: ValueError: no luck"
    )
    run = flow_run(info, "failing")
    assert run["state_name"] == "Failed"
    assert eventually(lambda: task_runs(info, run).get("r1 filter") == "Failed"), task_runs(info, run)


def test_a_run_that_was_killed_is_marked_crashed_by_the_next_and_one_that_lives_is_not(
    stalled: subprocess.Popen[str], tiny: Path, strop: Strop, under: dict[str, str], info: server.ServerInfo
) -> None:
    name = tiny.parent.name
    refused = strop("run", tiny, "--run-id", name, env=under)
    assert refused.returncode == 1
    assert f"run '{name}' is already being driven by process {stalled.pid}" in refused.stderr
    (first,) = flow_runs(info, {"name": {"any_": [name]}, "state": {"type": {"any_": ["RUNNING"]}}})
    os.kill(stalled.pid, signal.SIGKILL)
    stalled.wait()
    assert strop("run", tiny, "--run-id", name, "--set", "select.problems=0", env=under).returncode != 0
    (after,) = flow_runs(info, {"id": {"any_": [first["id"]]}})
    assert after["state_name"] == "Crashed"
    assert "its process is gone" in after["state"]["message"]
    assert eventually(lambda: "Running" not in task_runs(info, after).values()), task_runs(info, after)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(
    stalled: subprocess.Popen[str], tiny: Path, info: server.ServerInfo, signum: signal.Signals
) -> None:
    stalled.send_signal(signum)
    _, errors = stalled.communicate(timeout=30)
    assert stalled.returncode == 130, errors
    assert f"strop run {tiny} --run-id {tiny.parent.name}" in errors
    assert "Traceback" not in errors
    assert flow_run(info, tiny.parent.name)["state_name"] in {"Crashed", "Cancelled"}
