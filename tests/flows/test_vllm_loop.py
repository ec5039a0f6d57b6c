"""The loop with `engine: vllm`: it sharpens, uses each round's policy, and goes on after its engine was killed."""

import contextlib
import json

import psutil
import pytest

from strop.core.recipe import load
from strop.core.round import run_loop
from strop.storage.console import open_console
from strop.storage.errors import StageError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

OVERRIDES = [
    "engine.use=vllm",
    "engine.cache_gb=0.2",
    "base.heads=2",  # vLLM wants heads of 32 or more on CPU
    "base.steps=600",
    "rounds=1",
    "select.problems=96",
    "heldout.n=2",
    "shard_rollouts=64",  # many shards: one that is done is not the last
]


def children():
    """Processes of vLLM's that this process has started, through its workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("_vllm_child" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_run_whose_engine_was_killed_resumes_and_trains_with_no_engine_left(tmp_path):
    recipe = load("smoke", overrides=OVERRIDES)
    killed, during_training = [], []

    def kill(event):
        if event.kind == "progress" and event.stage == "generate" and not killed:
            killed.extend(children())
            for child in killed:
                child.kill()

    def watch(event):
        if event.stage == "train" and event.kind == "progress":
            during_training.append(len(children()))

    with pytest.raises(
        StageError, match=r"round 1, generate: shard \d+ of \d+: the process of vLLM was ended by SIGKILL"
    ):
        run_loop(recipe, lake=tmp_path / "lake", run_id="run", on_event=kill)
    assert killed
    assert children() == []
    summary = run_loop(recipe, lake=tmp_path / "lake", run_id="run", on_event=watch)
    assert summary.rounds == 1
    assert during_training
    assert set(during_training) == {0}
    assert children() == []
    console = open_console(tmp_path / "lake")
    try:
        query = "SELECT DISTINCT engine, policy_id, split FROM rollouts WHERE round = 1 ORDER BY split"
        rows = console.query(query).rows
        (policies,) = console.query("SELECT list(policy_id ORDER BY round) FROM policies").rows[0]
        counts = console.query("SELECT count(*), count(DISTINCT (problem_id, sample_index)) FROM rollouts").rows[0]
    finally:
        console.close()
    assert rows == [("vllm", policies[1], "heldout"), ("vllm", policies[0], "train")], json.dumps(rows)
    assert counts[0] >= counts[1] > 0
