"""A schedule: each firing adds one round to the run, none overlaps another, and a stop is clean."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect_api import api, eventually, flow_runs
from tiny_loop import clean_env

from strop.flows import runs, schedule, server
from strop.storage.errors import LakeError


@pytest.mark.parametrize(
    ("every", "seconds"), [("90s", 90), ("15m", 900), ("6h", 21_600), ("1d", 86_400)], ids=lambda value: str(value)
)
def test_an_interval_is_a_number_and_a_unit(every: str, seconds: int) -> None:
    assert schedule.parse(None, every) == schedule.When(every_s=seconds)


def test_a_cron_line_is_kept_as_it_is() -> None:
    assert schedule.parse("0 3 * * *", None) == schedule.When(cron="0 3 * * *")


@pytest.mark.slow
def test_an_interval_schedule_adds_a_round_at_each_firing_and_stops_cleanly(tiny: Path, prefect_home: Path) -> None:
    info = server.find(prefect_home)
    assert info is not None
    env = clean_env(PREFECT_API_URL=info.url, PREFECT_HOME=str(prefect_home / ".prefect"))
    words = f"-m strop.flows serve {tiny} --every 5s --run-id served --collision cancel".split()
    output = tiny.parent / "output.txt"
    with output.open("w") as out:
        process = subprocess.Popen([sys.executable, *words], cwd=tiny.parent, env=env, stdout=out, stderr=out)

    def rounds() -> set[int]:
        try:
            return {round for state in runs.states(tiny.parent / "lake") for round in state.rounds}
        except LakeError:  # not there yet, or just being made
            return set()

    try:
        assert eventually(lambda: {1, 2} <= rounds(), 90), output.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, output.read_text()
    text = output.read_text()
    assert "the schedule is paused until it is served again" in text
    assert "Traceback" not in text
    found = [run for run in flow_runs(info, {"name": {"any_": ["served"]}}) if run["start_time"]]
    assert {run["state_name"] for run in found} <= {"Completed", "Crashed"}
    spans = sorted((run["start_time"], run["end_time"]) for run in found)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans
    (deployment,) = api(info, "/deployments/filter", {"deployments": {"name": {"any_": ["served"]}}})
    assert deployment["paused"]
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
