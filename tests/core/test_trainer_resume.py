"""A training killed at any moment and called again ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = ("step 1", "step 3", "step 6", "last step", "while saving", "before the rename", "after the rename")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What became of every job, by objective and moment of the kill."""
    script = Path(__file__).with_name("trainer_crash.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("crash"))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("objective", "kill"),
    [(o, kill) for o in ("sft", "dpo") for kill in KILLS] + [("ppo", "step 3"), ("ppo", "before the rename")],
)
def test_a_killed_training_ends_with_the_same_bytes(ends, objective, kill):
    whole, broken = ends[f"{objective}: never"], ends[f"{objective}: {kill}"]
    assert broken["ended"] == -signal.SIGKILL
    assert broken["content"] == whole["content"]
    assert broken["metrics"] == whole["metrics"]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("kill", "first"), [("step 1", 1), ("step 3", 3), ("step 6", 7), ("while saving", 3), ("last step", None)]
)
def test_it_goes_on_from_its_last_whole_checkpoint(ends, objective, kill, first):
    end = ends[f"{objective}: {kill}"]
    assert end["steps"] == 8
    assert end["steps_again"] == ([] if first is None else list(range(first, 9)))


@pytest.mark.parametrize("kill", [k for k in KILLS if k != "after the rename"])
def test_nothing_usable_lies_at_the_output_before_the_end(ends, kill):
    assert not ends[f"sft: {kill}"]["output_after_kill"]


def test_a_finished_job_is_not_trained_again(ends):
    assert ends["sft: never"]["ended"] == 0
    assert ends["sft: never"]["steps_again"] == []
    assert ends["sft: after the rename"]["steps_again"] == []


def test_seed_and_objective_matter(ends):
    assert ends["sft: never"]["content"] != ends["dpo: never"]["content"]
