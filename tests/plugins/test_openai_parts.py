"""Parts of the engine `openai` on their own: settings, budget and journal, back-off, servers that Strop starts."""

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import ValidationError

from strop.core.chars import character_tokenizer
from strop.core.engine import Request, Sampling
from strop.core.recipe import default_run_id, load
from strop.core.registry import describe_errors
from strop.core.stored import stored_recipe
from strop.plugins.engines._openai_pool import BASE_S, CAP_S, backoff_s, retry_after_s
from strop.plugins.engines._openai_purse import KEPT, Purse, packed_key
from strop.plugins.engines._openai_serve import Serving
from strop.plugins.engines._openai_wire import Reply
from strop.plugins.engines.openai import Openai, openai
from strop.storage.errors import RecipeError, StageError
from strop.storage.tables import Run

SERVER = Path(__file__).with_name("openai_server.py")
COMMAND = f"{sys.executable} {SERVER} --model {{policy}} --port {{port}}"
REPLY = Reply(text="ab", finish="stop", ids=[1, 2], logps=[-0.5, -0.25], tokens=2, prompt_tokens=3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "say where the policy is served: base_urls: .* or serve"),
        ({"base_urls": ["http://a/v1"], "serve": COMMAND}, "say where the policy is served"),
        ({"base_urls": ["localhost:8000"]}, "a base URL is http://host:port/v1"),
        ({"serve": "vllm serve {policy}"}, "name the policy and the port in the command"),
        ({"serve": "vllm serve model --port {port}"}, "name the policy and the port in the command"),
        ({"base_urls": ["http://a/v1"], "budget": 1.0}, "a budget needs prices"),
    ],
)
def test_settings_that_cannot_work_say_what_to_write(settings, says):
    with pytest.raises(ValidationError, match=says):
        Openai(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_urls": ["http://a/v1"], "key": "sk-very-secret"},
        {"base_urls": ["http://me:sk-very-secret@a/v1"]},
        {"base_urls": ["http://a/v1?key=sk-very-secret"]},
        {"base_urls": [{"url": "sk-very-secret"}]},
        {"key": "KEY", "extra": {"key": "sk-very-secret"}},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(settings):
    with pytest.raises(ValidationError) as caught:
        Openai(**settings)
    said = describe_errors(caught.value, Openai)
    assert said
    assert "sk-very-secret" not in str(said)


def test_where_servers_are_and_what_they_may_cost_is_no_part_of_a_recipes_identity():
    def recipe(*more):
        return load("smoke", overrides=["engine.use=openai", *more])

    plain = recipe("engine.base_urls=[http://a/v1]")
    richer = recipe(
        "engine.base_urls=[http://b/v1, http://c/v1]",
        "engine.price={prompt: 1, completion: 2}",
        "engine.budget=5",
        "engine.key=MY_KEY",
        "engine.concurrency=7",
        "engine.timeout_s=3",
    )
    assert default_run_id(richer) == default_run_id(plain)
    assert richer.identity() != recipe("engine.base_urls=[http://a/v1]", "engine.seeds=false").identity()
    assert "http" not in json.dumps(richer.engine.settings())
    stored = Run(
        run_id="r", recipe="smoke", recipe_json=json.dumps(richer.canonical()), recipe_hash="", seed=0, strop_version=""
    )
    assert stored_recipe(stored).engine.config == richer.engine.config


def test_a_model_behind_a_server_cannot_be_trained_or_run_elsewhere(tmp_path):
    served = "base={use: served, model: x}"
    with pytest.raises(RecipeError, match=r"base `served` is a policy without weights, which cannot be trained: leave"):
        load("smoke", overrides=[served, "engine={use: openai, base_urls: [http://a]}"])
    text = "name: fixed\nrounds: 1\nbase: {use: served, model: x}\ntasks: [chain_arithmetic]\n"
    (tmp_path / "fixed.yaml").write_text(text + "round: [{select: {use: uniform, problems: 4}}]\n")
    with pytest.raises(RecipeError, match=r"which the engine `hf` cannot run: write `engine: openai`"):
        load(str(tmp_path / "fixed.yaml"))
    load(str(tmp_path / "fixed.yaml"), overrides=["engine={use: openai, base_urls: [http://a]}"])


def journal(folder, name, count):
    purse = Purse(folder)
    for i in range(count):
        number = None
        while number is None:
            number = purse.reserve(0.5, 1000.0)
        purse.settle(number, 0.25)
        purse.keep(packed_key({"who": name, "i": i}), REPLY)


def test_workers_share_a_budget_and_a_journal(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=journal, args=(tmp_path, name, 100)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    purse = Purse(tmp_path)
    assert purse.spending().spent == pytest.approx(50.0)
    assert purse.spending().open == 0
    keys = [packed_key({"who": name, "i": i}) for name in "abc" for i in range(100)]
    assert purse.find(keys) == [REPLY] * 200 + [None] * 100
    purse.close()


def spend_and_die(folder):
    purse = Purse(folder)
    purse.settle(purse.reserve(1.0, 10.0), 0.5)
    purse.keep(b"kept", REPLY)
    purse.reserve(2.0, 10.0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_worker_had_under_way_counts_as_spent(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=spend_and_die, args=(tmp_path,))
    worker.start()
    worker.join()
    purse = Purse(tmp_path)
    assert (purse.spending().spent, purse.spending().open, purse.spending().committed) == (0.5, 2.0, 2.5)
    assert purse.find([b"kept"]) == [REPLY]
    assert not purse.others_at_work()
    assert purse.reserve(0.6, 3.0) is None
    assert purse.reserve(0.5, 3.0) is not None
    purse.close()


def test_a_request_without_a_price_costs_nothing_though_its_answer_never_came():
    purse = Purse(None)
    purse.settle(purse.reserve(0.0, None), None)
    assert (purse.spending().spent, purse.spending().lost, purse.spending().open) == (0.0, 0.0, 0.0)
    purse.close()


def test_a_worker_with_requests_under_way_is_waited_for(tmp_path):
    one, two = Purse(tmp_path), Purse(tmp_path)
    two._owner = f"{os.getppid()}-{psutil.Process(os.getppid()).create_time():.2f}"
    number = two.reserve(1.0, None)
    assert one.others_at_work()
    assert not two.others_at_work()
    two.settle(number, None)
    assert not one.others_at_work()
    assert one.spending().lost == 1.0
    one.close()
    two.close()


def test_the_journal_keeps_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr("strop.plugins.engines._openai_purse.KEPT", 3)
    purse = Purse(tmp_path)
    for i in range(5):
        purse.keep(bytes([i]), REPLY)
    purse.close()
    again = Purse(tmp_path)
    assert again.find([bytes([i]) for i in range(5)]) == [None, None, REPLY, REPLY, REPLY]
    again.close()
    assert KEPT > 10_000


def test_back_off_doubles_its_bound_and_is_anything_below_it():
    for tries in range(12):
        bound = min(CAP_S, BASE_S * 2**tries)
        drawn = [backoff_s(tries) for _ in range(400)]
        assert 0 <= min(drawn) < 0.1 * bound
        assert 0.9 * bound < max(drawn) <= bound
        assert statistics.fmean(drawn) == pytest.approx(bound / 2, rel=0.2)


def test_retry_after_is_read_as_seconds_milliseconds_or_a_date():
    def after(**headers):
        return retry_after_s(httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()}))

    assert after() is None
    assert after(retry_after="2.5") == 2.5
    assert after(retry_after="90", retry_after_ms="1500") == 1.5
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 28 < after(retry_after=soon) <= 30
    assert after(retry_after="Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert after(retry_after="soon") is None


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "a policy"  # with a blank in it
    character_tokenizer(500).save_pretrained(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 500}')
    return folder


def started(weights, tmp_path, **settings):
    config = Openai(**{"serve": COMMAND, "start_s": 30, "patience_s": 20, **settings})
    return openai(config, directory=weights, threads=2, scratch=tmp_path / "scratch", needs=frozenset())


def family(engine):
    found = [psutil.Process(s.process.pid) for s in engine.fleet.serving]
    return [*found, *(child for process in found for child in process.children(recursive=True))]


def test_servers_that_strop_starts_serve_the_policy_and_are_gone_when_it_is_closed(weights, tmp_path):
    engine = started(weights, tmp_path, replicas=2)
    try:
        (found,) = engine.sample([Request(prompt="1+1=", seeds=tuple(range(20)))], Sampling(max_tokens=9))
        assert all(c.token_ids for c in found)
        processes, logs = family(engine), [s.log for s in engine.fleet.serving]
        assert len(processes) == 4
    finally:
        engine.close()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
    assert not any(log.exists() for log in logs)
    with pytest.raises(StageError, match="closed"):
        engine.sample([Request(prompt="1", seeds=(1,))], Sampling())


def test_a_server_that_does_not_start_is_quoted(weights, tmp_path):
    with pytest.raises(StageError, match=r"(?s)ended with code 1; its last output:\n.*cannot load: no memory"):
        started(weights, tmp_path, serve=COMMAND + " --fail 'no memory'")
    with pytest.raises(StageError, match=r"(?s)ended with code 127; .*cannot run 'no-such-server': No such file"):
        started(weights, tmp_path, serve="no-such-server {policy} --port {port}")
    began = time.monotonic()
    with pytest.raises(StageError, match=r"(?s)does not answer at http://127.* after start_s = 1 s \(cannot connect"):
        started(weights, tmp_path, serve="sh -c 'sleep 60' {policy} {port}", start_s=1)
    assert time.monotonic() - began < 20


def test_a_server_killed_while_it_serves_is_an_error_and_its_replica_goes_on_alone(weights, tmp_path):
    engine = started(weights, tmp_path, replicas=2, patience_s=5)
    try:
        os.killpg(engine.fleet.serving[0].process.pid, signal.SIGKILL)
        asked = [Request(prompt="1+1=", seeds=tuple(range(20)))]
        assert all(c.error is None for c in engine.sample(asked, Sampling(max_tokens=9))[0])
        os.killpg(engine.fleet.serving[1].process.pid, signal.SIGKILL)
        with pytest.raises(StageError, match=r"was ended by SIGKILL; its last output:\n *serving .*a policy"):
            engine.sample([Request(prompt="2+2=", seeds=(1,))], Sampling(max_tokens=9))
    finally:
        engine.close()


def test_other_weights_bring_other_servers_and_adapters_do_not(weights, tmp_path):
    def adapter(name):
        folder = tmp_path / name
        character_tokenizer(500).save_pretrained(folder)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(weights), "r": 4}))
        return folder

    engine = started(weights, tmp_path, serve=COMMAND.replace("{policy}", "{base}"))
    asked = [Request(prompt="1+1=", seeds=(1,))]
    try:
        pid = engine.fleet.serving[0].process.pid
        for directory in (adapter("one"), adapter("two"), weights):
            engine.reload(directory)
            engine.sample(asked, Sampling(max_tokens=9))
            assert engine.fleet.serving[0].process.pid == pid
        other = tmp_path / "other"
        character_tokenizer(500).save_pretrained(other)
        (other / "config.json").write_text("{}")
        engine.reload(other)
        assert not psutil.pid_exists(pid)
        assert str(other) in engine.fleet.serving[0].line
        engine.sample(asked, Sampling(max_tokens=9))
    finally:
        engine.close()
    with pytest.raises(StageError, match=r"in `serve`, write \{base\} in place of \{policy\}, with --enable-lora"):
        started(adapter("three"), tmp_path)


STUBBORN = (
    f'{sys.executable} -c "import signal,time; signal.signal(15, signal.SIG_IGN); '
    "print('serving', flush=True); time.sleep(60)\" {policy} {port}"
)


def test_a_server_does_not_outlive_an_owner_that_was_killed(tmp_path):
    script = (
        "import sys, time\nfrom strop.plugins.engines._openai_serve import Serving\n"
        "made = Serving(sys.argv[1], {'policy': 'x', 'base': 'x', 'replica': 0}, 1)\n"
        "print(made.process.pid, made.log, flush=True)\ntime.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, STUBBORN], stdout=subprocess.PIPE, text=True)
    pid, log = owner.stdout.readline().split()
    while "serving" not in Path(log).read_text():
        time.sleep(0.02)
    group = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children()]
    assert len(group) == 2
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs(group, timeout=10)
    assert not alive
    Path(log).unlink()


def test_a_server_that_ignores_the_polite_signal_is_killed(tmp_path):
    made = Serving(STUBBORN, {"policy": "x", "base": "x", "replica": 0}, 1)
    while "serving" not in made.log.read_text():
        time.sleep(0.02)
    child = psutil.Process(made.process.pid).children()[0]
    made.close()
    assert not child.is_running()
