"""kill -9 anywhere, then the same line again: nothing committed is redone, and the end is the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from lake_content import content

from strop.core.recipe import load

DRIVER = Path(__file__).parent / "kill_driver.py"
POINTS = [
    "commit:before:1",  # the run's own row
    "commit:after:2",  # the problems
    "event:progress:heldout:0",
    "commit:before:4",
    "commit:after:3",
    "event:progress:generate:1",
    "commit:before:2",
    "commit:after:2",
    "event:stage_start:synthesize:1",
    "event:progress:train:1",
    "commit:before:1",  # the trained policy, before it is the lake's
    "commit:after:1",  # and after, before anybody heard of it
    "commit:before:3",
    "event:stage_done:gate:1",
    "event:progress:train:2",
    "commit:before:5",
]


def run(lake, point):
    return subprocess.run(
        [sys.executable, str(DRIVER), "smoke", str(lake), "smoke", point], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_killed_at_many_points_the_run_ends_as_if_nothing_had_happened(smoke, tmp_path):
    assert load("smoke").rounds >= 2
    lake = tmp_path / "lake"
    killed = [run(lake, point) for point in POINTS]
    assert [done.returncode for done in killed] == [-9] * len(POINTS), [done.stderr[-500:] for done in killed]
    done = run(lake, "never")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == smoke.summary.champion_hash
    assert content(lake) == content(smoke.lake)
    assert not list((lake / "staging").glob("*.parquet"))
