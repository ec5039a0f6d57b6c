"""The loop with `engine: openai`: a real `vllm serve` for each policy, and a fixed model behind a toy server."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from strop.core.recipe import load
from strop.core.round import run_loop, session_of
from strop.storage.console import open_console
from strop.storage.errors import StageError
from strop.storage.lake import open_lake

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
from openai_server import Toy

FIXED = """
name: fixed
rounds: 2
shard_rollouts: 32
base: {use: served, model: toy}
tasks: [{use: chain_arithmetic, train: 40, heldout_per_category: 1}]
engine: {use: openai, price: {prompt: 1, completion: 10}, concurrency: 4}
round:
  - select: {use: uniform, problems: 16}
  - generate: {use: sample, n: 4, max_tokens: 8}
  - verify: answer
"""


def rows(lake, sql):
    console = open_console(lake)
    try:
        return console.query(sql).rows
    finally:
        console.close()


def test_a_run_whose_budget_is_spent_goes_on_with_a_higher_one_and_pays_for_nothing_twice(tmp_path):
    file = tmp_path / "fixed.yaml"
    file.write_text(FIXED)
    server = Toy().start()

    def run(budget):
        recipe = load(str(file), overrides=[f"engine.base_urls=[{server.url}]", f"engine.budget={budget}"])
        return run_loop(recipe, lake=tmp_path / "lake", run_id="run")

    try:
        with pytest.raises(StageError, match=r"round 1, generate: shard . of 2: the budget is spent: 0.00.* of 0.003"):
            run(0.003)
        first = server.served
        assert run(1).rounds == 2
    finally:
        server.stop()
    assert 20 < first < 64
    assert server.served == 128
    assert rows(tmp_path / "lake", "SELECT count(*), count(DISTINCT seed) FROM rollouts") == [(128, 128)]
    (total, least) = rows(tmp_path / "lake", "SELECT sum(cost), min(n_prompt_tokens) FROM rollouts")[0]
    assert total > 0.003
    assert least > 2


def test_one_worker_feeds_the_servers_unless_the_recipe_says_otherwise(tmp_path):
    file = tmp_path / "fixed.yaml"
    file.write_text(FIXED)
    for overrides, count in (([], 1), (["workers=3"], 3)):
        recipe = load(str(file), overrides=["engine.base_urls=[http://a/v1]", *overrides])
        with open_lake(tmp_path / "lake", create=True) as lake:
            assert session_of(recipe, lake, "run", lambda event: None).workers.count == count


def servers():
    """Processes of vLLM's that this process has started, through its workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("api_server" in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.mark.vllm
@pytest.mark.slow
def test_a_loop_sharpens_with_a_server_for_each_policy_and_trains_with_none_running(tmp_path):
    command = (
        f"env TORCHDYNAMO_DISABLE=1 {os.environ.get('STROP_VLLM_PYTHON')} -m vllm.entrypoints.openai.api_server "
        "--model {policy} --port {port} --dtype float32 --enforce-eager --no-enable-chunked-prefill "
        "--kv-cache-memory-bytes 200000000 --generation-config vllm --logprobs-mode processed_logprobs"
    )
    overrides = ["base.heads=2", "base.steps=600", "rounds=2", "select.problems=96", "heldout.n=2"]
    recipe = load("smoke", overrides=[*overrides, f"engine={{use: openai, serve: '{command}'}}"])
    during_training = []

    def watch(event):
        if event.stage == "train" and event.kind == "progress":
            during_training.append(len(servers()))

    summary = run_loop(recipe, lake=tmp_path / "lake", run_id="run", on_event=watch)
    assert summary.rounds == 2
    assert during_training
    assert set(during_training) == {0}
    assert servers() == []
    found = rows(
        tmp_path / "lake",
        "SELECT count(*), count(*) FILTER (len(token_ids) = len(logps) AND len(logps) > 0), "
        "list(DISTINCT engine), count(DISTINCT policy_id) FROM rollouts",
    )
    assert found[0][0] == found[0][1] > 300
    assert found[0][2:] == (["openai"], 3)


def test_a_server_that_is_away_for_a_while_in_mid_stage_does_not_stop_the_run(tmp_path):
    file = tmp_path / "fixed.yaml"
    file.write_text(FIXED)
    server, back = Toy(), []
    turn = iter([False] * 30 + [True] + [False] * 10**4)

    def fall(handler, body):
        if next(turn):
            threading.Thread(target=server.stop).start()
            threading.Timer(2.0, lambda: back.append(server.again())).start()
            handler.close_connection = True
            return True
        return False

    server.misdeed = fall
    server.start()
    recipe = load(str(file), overrides=[f"engine.base_urls=[{server.url}]", "rounds=1"])
    started = time.monotonic()
    try:
        assert run_loop(recipe, lake=tmp_path / "lake", run_id="run").rounds == 1
    finally:
        back[0].stop()
    assert time.monotonic() - started > 2.0
    found = rows(tmp_path / "lake", "SELECT count(*), count(*) FILTER (finish_reason = 'error') FROM rollouts")
    assert found == [(64, 0)]
    assert back[0].served > 20
