"""The engine `openai` against a server that fails in every way a server can."""

import json
import math
import threading
import time
from collections import Counter

import pytest
from openai_server import Toy, distribution

from strop.core.chars import character_tokenizer
from strop.core.engine import Request, Sampling
from strop.plugins.base.served import Served, served
from strop.plugins.engines import _openai_pool as pool_module
from strop.plugins.engines._openai_purse import Purse
from strop.plugins.engines.openai import Openai, openai
from strop.storage.errors import StageError

SAMPLING = Sampling(max_tokens=12)
ASKED = [Request(prompt=f"{i}+1=", seeds=tuple(range(10 * i, 10 * i + 4))) for i in range(6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Back-off as it is, a fiftieth of the time."""
    monkeypatch.setattr(pool_module, "BASE_S", 0.01)
    monkeypatch.setattr(pool_module, "CAP_S", 0.2)
    monkeypatch.setattr(pool_module, "AWAY_S", 0.1)


@pytest.fixture
def toy():
    """Servers, ended with the test."""
    made = []

    def start(*given, **knows) -> Toy:
        made.append(Toy(*given, **knows).start())
        return made[-1]

    yield start
    for server in made:
        server.stop()


@pytest.fixture
def weights(tmp_path):
    """A policy with a tokenizer, as far as this engine looks at it."""
    folder = tmp_path / "policy"
    character_tokenizer(500).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 500, "eos_token_id": 1}))
    return folder


@pytest.fixture
def engines(tmp_path):
    """engine(server or servers, directory, **settings); all are closed in the end."""
    made = []

    def make(servers, directory=None, *, needs=frozenset(), scratch=None, **settings):
        urls = [server.url for server in (servers if isinstance(servers, list) else [servers])]
        directory = directory or served(Served(model="toy"), directory=tmp_path / "served")
        config = Openai(**{"base_urls": urls, "concurrency": 8, "timeout_s": 5, "patience_s": 5, **settings})
        scratch = scratch or tmp_path / f"scratch{len(made)}"
        made.append(openai(config, directory=directory, threads=1, scratch=scratch, needs=needs))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def texts(found):
    return [[c.text for c in completions] for completions in found]


@pytest.fixture
def expected(toy, engines):
    """What a server gives that behaves."""
    return texts(engines(toy()).sample(ASKED, SAMPLING))


def once_in(n, misdeed):
    """The misdeed at every n-th request."""
    count = iter(range(10**6))
    lock = threading.Lock()

    def maybe(handler, body):
        with lock:
            mine = next(count) % n == 0
        return misdeed(handler, body) if mine else False

    return maybe


def status(code, **headers):
    def misdeed(handler, body):
        handler.fail(code, "not now", **headers)
        return True

    return misdeed


def garbage(data, length=None):
    def misdeed(handler, body):
        handler.send(data, length=length)
        handler.close_connection = True
        return True

    return misdeed


def hang_up(handler, body):
    handler.close_connection = True
    return True


def stall(handler, body):
    time.sleep(1.0)
    handler.close_connection = True
    return True


MISDEEDS = {
    "429": status(429),
    "429 and when to come again": status(429, retry_after_ms="20"),
    "408": status(408),
    "409": status(409),
    "500": status(500),
    "503 and when to come again": status(503, Retry_After="0.05"),
    "wrong JSON": garbage(b'{"choices": [{"text": "ab'),
    "no JSON": garbage(b"<html>busy</html>"),
    "no choices": garbage(b'{"choices": []}'),
    "a choice without text": garbage(b'{"choices": [{"index": 0}]}'),
    "a list": garbage(b"[1]"),
    "half an answer": garbage(b'{"choices": [{"text"', length=500),
    "no answer": hang_up,
    "a late answer": stall,
}


@pytest.mark.parametrize("misdeed", MISDEEDS.values(), ids=MISDEEDS)
@pytest.mark.parametrize("often", [1, 3], ids=["storm", "now and then"])
def test_what_may_pass_is_tried_again_until_every_completion_is_there(toy, engines, expected, misdeed, often):
    bad = once_in(often, misdeed)
    left = iter([True] * 30 + [False] * 10**6)
    server = toy(misdeed=lambda handler, body: next(left) and bad(handler, body))
    found = engines(server, timeout_s=0.3, retries=50, patience_s=60).sample(ASKED, SAMPLING)
    assert texts(found) == expected
    assert len(server.bodies) > 24


def test_a_completion_depends_on_prompt_seed_and_sampling_alone(toy, engines, expected):
    server = toy()
    backwards = engines(server).sample(ASKED[::-1], SAMPLING)[::-1]
    single = engines(server, concurrency=1)
    alone = [single.sample([Request(prompt="2+1=", seeds=(seed,))], SAMPLING)[0][0].text for seed in (21, 20)]
    assert texts(backwards) == expected
    assert alone == [expected[2][1], expected[2][0]]
    assert len({text for row in expected for text in row}) > 12
    assert sorted(b["seed"] for b in server.bodies) == sorted([s for r in ASKED for s in r.seeds] + [20, 21])


def test_while_a_server_asks_for_rest_nothing_is_sent_to_it(toy, engines):
    rest = once_in(10**6, status(429, Retry_After="1"))
    server = toy(misdeed=rest)
    engines(server, concurrency=1).sample(ASKED[:1], SAMPLING)
    assert 1.0 <= server.times[1] - server.times[0] < 1.6


def test_a_rest_longer_than_our_patience_stops_the_stage_at_once(toy, engines):
    server = toy(misdeed=status(429, Retry_After="3600"))
    with pytest.raises(StageError, match=r"asks for 3600 s of rest, and patience_s is 5; run the same command again"):
        engines(server, patience_s=5).sample(ASKED, SAMPLING)


def test_servers_share_the_work_and_one_that_dies_leaves_it_to_the_others(toy, engines, expected):
    first, second = toy(), toy()
    slow = lambda handler, body: time.sleep(0.01) or False  # noqa: E731
    first.misdeed = second.misdeed = slow
    engine = engines([first, second])
    assert texts(engine.sample(ASKED, SAMPLING)) == expected
    assert min(first.served, second.served) >= 6
    first.misdeed = lambda handler, body: threading.Thread(target=first.stop).start() or time.sleep(0.2) or True
    more = [Request(prompt=r.prompt, seeds=tuple(s + 1000 for s in r.seeds)) for r in ASKED]
    found = engine.sample(more, SAMPLING)
    assert [c.error for row in found for c in row] == [None] * 24
    third = first.again()
    try:
        time.sleep(0.15)
        engine.sample([Request(prompt="new", seeds=tuple(range(40)))], SAMPLING)
        assert third.served >= 5
    finally:
        third.stop()


def test_when_every_server_is_gone_the_stage_waits_and_goes_on(toy, engines):
    server, back = toy(), []
    asked = [Request(prompt="1+1=", seeds=tuple(range(60)))]
    fine = texts(engines(server).sample(asked, SAMPLING))
    server.bodies.clear()

    def fall(handler, body):
        threading.Thread(target=server.stop).start()
        threading.Timer(1.0, lambda: back.append(server.again())).start()
        return hang_up(handler, body)

    at_20 = iter([False] * 20 + [True] + [False] * 10**4)
    server.misdeed = lambda handler, body: time.sleep(0.005) or (next(at_20) and fall(handler, body))
    started = time.monotonic()
    found = engines(server, patience_s=20).sample(asked, SAMPLING)
    try:
        assert texts(found) == fine
        assert time.monotonic() - started > 1.0
        assert back[0].served > 20
    finally:
        back[0].stop()


def test_when_they_stay_away_the_stage_stops_and_the_same_command_goes_on(toy, engines, tmp_path):
    server = toy()
    scratch = tmp_path / "run"
    server.misdeed = lambda handler, body: (
        len(server.bodies) > 10 and not threading.Thread(target=server.stop).start() and hang_up(handler, body)
    )
    with pytest.raises(
        StageError, match=r"no answer for patience_s = 0.5 s \(http.*cannot connect.*same command again"
    ):
        engines(server, scratch=scratch, patience_s=0.5, concurrency=2).sample(ASKED, SAMPLING)
    kept = server.served
    assert 9 <= kept <= 11
    back = server.again()
    try:
        found = engines(back, scratch=scratch).sample(ASKED, SAMPLING)
        assert [len(row) for row in found] == [4] * 6
        assert back.served == 24 - kept
    finally:
        back.stop()


def test_a_wrong_key_stops_the_stage_says_what_to_write_and_is_not_repeated(toy, engines, monkeypatch, tmp_path):
    server = toy(key="right-key")
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    with pytest.raises(StageError, match=r"\$MY_KEY holds a key it does not take.*`key: MY_KEY`") as caught:
        engines(server, key="MY_KEY")
    assert "sk-secret-123" not in str(caught.value)
    with pytest.raises(StageError, match=r"wants a key, and `key` names none.*`key: OPENAI_API_KEY`"):
        engines(server)
    with pytest.raises(StageError, match=r"environment variable NO_SUCH_KEY, which is not set: export NO_SUCH_KEY="):
        engines(server, key="NO_SUCH_KEY")
    monkeypatch.setenv("MY_KEY", "right-key")
    engines(server, key="MY_KEY", scratch=tmp_path / "kept").sample(ASKED, SAMPLING)
    assert all(b"right-key" not in file.read_bytes() for file in (tmp_path / "kept").iterdir())


def test_an_unknown_model_stops_the_stage_with_those_there_are(toy, engines, tmp_path):
    directory = served(Served(model="toi"), directory=tmp_path / "other")
    with pytest.raises(StageError, match=r"has no model 'toi'; did you mean 'toy'\?; it has: toy"):
        engines(toy(), directory)


def test_an_account_without_credit_is_not_asked_again(toy, engines):
    server = toy()
    server.misdeed = lambda handler, body: (
        handler.answer({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, 429) or True
    )
    with pytest.raises(StageError, match=r"no credit .*exceeded your quota"):
        engines(server, concurrency=1).sample(ASKED, SAMPLING)
    assert len(server.bodies) == 1


def test_a_prompt_too_long_for_the_context_is_an_error_row_beside_good_ones(toy, engines, weights):
    long = Request(prompt="7" * 60, seeds=(1, 2))
    (good, bad) = engines(toy(context=50)).sample([ASKED[0], long], SAMPLING)
    assert [c.finish_reason for c in bad] == ["error", "error"]
    assert "maximum context length is 50" in bad[0].error
    assert {c.finish_reason for c in good} <= {"stop", "length"}
    server = toy(str(weights), context=50)
    server.cards[0]["max_model_len"] = 50
    (bad, near) = engines(server, weights).sample([long, Request(prompt="7" * 46, seeds=(3,))], SAMPLING)
    assert "60 tokens, the server's context is 50" in bad[0].error
    assert [b["max_tokens"] for b in server.bodies] == [4]
    assert near[0].error is None


def test_a_request_that_fails_alone_becomes_an_error_row(toy, engines):
    server = toy(misdeed=lambda handler, body: body["prompt"] == "3+1=" and status(500)(handler, body))
    found = engines(server, retries=3).sample(ASKED, SAMPLING)
    errors = [[c.error for c in row] for row in found]
    assert all("given up after 3 tries" in error and "HTTP 500: not now" in error for error in errors.pop(3))
    assert errors == [[None] * 4] * 5


def test_a_request_that_fails_with_nothing_beside_it_becomes_an_error_row_if_the_server_is_well(toy, engines):
    bad = lambda handler, body: body["prompt"] == "3+1=" and status(500)(handler, body)  # noqa: E731
    found = engines(toy(misdeed=bad), patience_s=0.5, concurrency=1).sample(ASKED[2:4], SAMPLING)
    assert [c.error for c in found[0]] == [None] * 4
    assert all("given up, as others succeed: no answer for patience_s = 0.5 s" in c.error for c in found[1])
    assert all("HTTP 500: not now" in c.error for c in found[1])


def test_failures_of_all_alike_and_rests_are_not_held_against_a_request(toy, engines, expected):
    left = iter([True] * 60 + [False] * 10**6)
    server = toy(misdeed=lambda handler, body: next(left) and status(500)(handler, body))
    assert texts(engines(server, retries=3).sample(ASKED, SAMPLING)) == expected
    again = iter([True] * 40 + [False] * 10**6)
    server = toy(misdeed=lambda h, body: body["prompt"] == "3+1=" and next(again) and status(429)(h, body))
    assert texts(engines(server, retries=3).sample(ASKED, SAMPLING)) == expected


def test_a_server_that_refuses_everything_stops_the_stage_with_its_words(toy, engines):
    with pytest.raises(StageError, match=r"refused 8 requests and took none, .*not now"):
        engines(toy(misdeed=status(400)), concurrency=1).sample(ASKED, SAMPLING)
    some = toy(misdeed=lambda handler, body: body["prompt"][0] in "123" and status(400)(handler, body))
    found = engines(some, concurrency=1).sample(ASKED, SAMPLING)
    assert [c.error for row in found for c in row].count(None) == 12


def test_token_ids_and_exact_log_probabilities_come_with_every_completion(toy, engines, weights):
    sampling = Sampling(temperature=0.7, top_k=3, max_tokens=30)
    server = toy(str(weights))
    engine = engines(server, weights, needs=frozenset({"token_ids", "logps"}))
    (found,) = engine.sample([Request(prompt="1+1=", seeds=tuple(range(50)))], sampling)
    p = distribution(0.7, 3)
    for completion in found:
        assert completion.logps == pytest.approx([math.log(p["abc"["abc".index(c)]]) for c in completion.text])
        assert [13 + "abc".index(c) for c in completion.text] == completion.token_ids
    assert server.bodies[0]["prompt"] == [4, 41, 4, 45]
    assert server.bodies[0]["stop_token_ids"] == [1]
    (ended,) = engine.sample([Request(prompt="1+1=", seeds=tuple(range(20)))], Sampling(max_tokens=200))
    assert all(c.finish_reason == "stop" and c.token_ids[-1] == 1 and "." not in c.text for c in ended)


@pytest.mark.parametrize("kind", ["sampled", "tempered", "plain", None])
def test_log_probabilities_of_another_distribution_are_left_out_and_refused_where_they_are_needed(
    toy, engines, weights, kind
):
    server = toy(str(weights), logprobs=kind)
    engine = engines(server, weights)
    assert engine.can.logps == kind
    ways = {
        Sampling(max_tokens=5): kind is not None,
        Sampling(max_tokens=5, temperature=0.7): kind in {"sampled", "tempered"},
        Sampling(max_tokens=5, top_p=0.8): kind == "sampled",
        Sampling(max_tokens=5, temperature=0): True,
    }
    for sampling, given in ways.items():
        (completion,) = engine.sample([Request(prompt="1+1=", seeds=(1,))], sampling)[0]
        assert len(completion.logps) == (len(completion.token_ids) if given else 0)
        if sampling.temperature and given:
            p = distribution(sampling.temperature, top_p=sampling.top_p)
            expected = [math.log(p["abc"[i - 13]] if i > 1 else p["."]) for i in completion.token_ids]
            assert completion.logps == pytest.approx(expected)
    if kind is None:
        with pytest.raises(StageError, match=r"needs logps of every completion.*gives none"):
            engines(server, weights, needs=frozenset({"logps"}))
        return
    strict = engines(server, weights, needs=frozenset({"logps"}))
    before = len(server.bodies)
    for sampling, given in ways.items():
        if given:
            strict.sample(ASKED[:1], sampling)
        else:
            before = len(server.bodies)
            with pytest.raises(StageError, match=r"neither tempered|not truncated.*processed_logprobs"):
                strict.sample(ASKED[:1], sampling)
            assert len(server.bodies) == before, "it must fail before the first token"


def test_a_server_of_few_words_gives_text_alone_and_is_not_asked_for_more(toy, engines):
    server = toy(owner="acme", token_ids=False, takes_ids=False, logprobs=None, scores=None)
    engine = engines(server)
    (found,) = engine.sample([Request(prompt="1+1=", seeds=(1, 2))], SAMPLING)
    assert [(c.token_ids, c.logps) for c in found] == [([], [])] * 2
    assert all(c.text for c in found)
    assert set(server.bodies[0]) == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed"}
    assert engine.capabilities == {"sample", "reload"}
    with pytest.raises(StageError, match="gives no logps of a given text"):
        engine.score([("1", "2")])
    with pytest.raises(StageError, match=r"samples with top_k, .*not known to take that: write `extensions: true`"):
        engine.sample(ASKED, Sampling(top_k=3))
    with pytest.raises(StageError, match="needs token_ids of every completion"):
        engines(server, needs=frozenset({"token_ids"}))


@pytest.mark.parametrize("how", ["prompt_logprobs", "echo", "labels"])
def test_score_gives_the_log_probabilities_of_a_text_and_of_token_ids(toy, engines, weights, how):
    engine = engines(toy(str(weights), scores=how), weights, policies="lora" if how == "labels" else "served")
    assert "score" in engine.capabilities
    assert engine.can.score == how
    found = engine.score([("1+1=", "abz"), ("1", [15, 1]), ("1", "")])
    assert found[0] == pytest.approx([math.log(0.5), math.log(0.25), math.log(0.01)])
    assert found[1] == pytest.approx([math.log(0.2), math.log(0.05)])
    assert found[2] == []
    with pytest.raises(ValueError, match="cannot score 400 \\+ 100 tokens: the context is 500"):
        engine.score([("1" * 400, "2" * 100)])
    with pytest.raises(ValueError, match="empty prompt"):
        engine.score([("", "2")])


def test_a_stop_string_ends_a_completion_and_is_kept_out_of_the_text(toy, engines, weights):
    engine = engines(toy(str(weights)), weights)
    (found,) = engine.sample([Request(prompt="1=", seeds=tuple(range(30)))], Sampling(max_tokens=50, stop=("ca",)))
    met = [c for c in found if c.token_ids[-2:] == [15, 13]]
    assert len(met) > 5
    assert all(c.finish_reason == "stop" and "ca" not in c.text for c in found)
    assert all(len(c.text) == len(c.token_ids) - 2 == len(c.logps) - 2 for c in met)


def test_a_chat_gets_its_messages_and_a_plain_prompt_is_what_a_user_says(toy, engines):
    server = toy()
    engine = engines(server, endpoint="chat")
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "1+1="}]
    asked = [engine.render("1+1=", chat), engine.render("2+2=")]
    found = engine.sample([Request(prompt=p, seeds=(1,)) for p in asked], SAMPLING)
    sent = sorted((b["messages"] for b in server.bodies), key=len)
    assert sent == [[{"role": "user", "content": "2+2="}], chat]
    assert all(row[0].text for row in found)
    assert all(row[0].token_ids or row[0].n_tokens for row in found), "the server counted them where it gave none"


def test_without_seeds_the_samples_of_a_prompt_are_one_request(toy, engines, tmp_path):
    server = toy(owner="acme")
    price = {"prompt": 2.0, "completion": 10.0}
    engine = engines(server, seeds=False, price=price, scratch=tmp_path / "run")
    found = engine.sample(ASKED, SAMPLING)
    assert [(b["n"], "seed" in b) for b in server.bodies] == [(4, False)] * 6
    assert [len(row) for row in found] == [4] * 6
    assert [c.n_prompt_tokens for c in found[0]] == [4, 0, 0, 0]
    again = engines(server, seeds=False, price=price, scratch=tmp_path / "run").sample(ASKED, SAMPLING)
    assert again == found
    assert len(server.bodies) == 6


def test_what_a_completion_costs_is_counted_with_cached_tokens_at_their_own_price(toy, engines):
    price = {"prompt": 3.0, "completion": 10.0, "cached": 1.0}
    engine = engines(toy(cached=1), price=price)
    before = engine.purse.spending().spent
    found = [c for row in engine.sample(ASKED, SAMPLING) for c in row]
    for completion in found:
        assert completion.n_prompt_tokens == 4
        assert completion.cost == pytest.approx((3 * 3 + 1 + 10 * len(completion.token_ids)) / 1e6)
    assert engine.purse.spending().spent - before == pytest.approx(sum(c.cost for c in found))
    assert engine.purse.spending().open == 0


def test_a_budget_is_never_overstepped_and_a_higher_one_goes_on_where_it_stopped(toy, engines, expected, tmp_path):
    server = toy()
    settings = {"price": {"prompt": 1.0, "completion": 10.0}, "scratch": tmp_path / "run"}
    with pytest.raises(
        StageError, match=r"the budget is spent: 0\.00.* of 0\.0015, .*--set engine.budget=0.0"
    ) as caught:
        engines(server, budget=0.0015, **settings).sample(ASKED, SAMPLING)
    first = server.served
    assert "What was sampled is kept" in str(caught.value)
    assert 5 < first < 24
    purse = Purse(tmp_path / "run")
    assert 0.0010 < purse.spending().spent <= 0.0015
    assert purse.spending().open == 0
    purse.close()
    engine = engines(server, budget=1.0, **settings)
    assert texts(engine.sample(ASKED, SAMPLING)) == expected
    assert server.served == 24


def test_a_request_whose_answer_never_came_is_counted_at_its_worst(toy, engines):
    engine = engines(toy(misdeed=once_in(8, hang_up)), price={"prompt": 1.0, "completion": 10.0}, concurrency=1)
    before = engine.purse.spending().spent
    found = [c for row in engine.sample(ASKED, SAMPLING) for c in row]
    after = engine.purse.spending()
    lost = len(engine.fleet.pool.servers) * 4 * (64 + 4 + 10 * 12) / 1e6
    assert after.lost == pytest.approx(lost)
    assert after.spent - before == pytest.approx(sum(c.cost for c in found) + lost)


def test_a_stage_that_fails_keeps_what_it_paid_for(toy, engines, expected, tmp_path):
    server = toy()
    server.misdeed = lambda handler, body: len(server.bodies) > 9 and status(401)(handler, body)
    with pytest.raises(StageError, match="HTTP 401"):
        engines(server, scratch=tmp_path / "run").sample(ASKED, SAMPLING)
    assert server.served == 9
    server.misdeed = lambda handler, body: False
    seen = []
    found = engines(server, scratch=tmp_path / "run").sample(ASKED, SAMPLING, lambda *done: seen.append(done))
    assert texts(found) == expected
    assert server.served == 24
    assert seen[-1] == (24, sum(len(c.token_ids) for row in found for c in row))


def test_the_servers_own_reason_for_an_unfinished_completion_is_an_error(toy, engines):
    answer = {"choices": [{"index": 0, "text": "ab", "finish_reason": "content_filter"}]}
    (found,) = engines(toy(misdeed=lambda h, b: h.answer(answer) or True)).sample(ASKED[:1], SAMPLING)
    assert (found[0].finish_reason, found[0].text) == ("error", "ab")
    assert "content_filter" in found[0].error


def test_nothing_is_sampled_from_another_policy_than_the_one_asked_for(toy, engines, weights, tmp_path):
    with pytest.raises(StageError, match=rf"has toy, and the policy is {weights}: start it with that directory"):
        engines(toy(), weights)
    server = toy(str(weights))
    engine = engines(server, weights)
    other = tmp_path / "other"
    character_tokenizer(500).save_pretrained(other)
    (other / "config.json").write_text("{}")
    with pytest.raises(StageError, match=rf"has {weights}, and the policy is {other}"):
        engine.reload(other)
    engine.reload(weights)
    server.stop()
    changed = Toy(str(other), server.server_port).start()
    try:
        with pytest.raises(StageError, match=rf"has {other}, and the policy is {weights}"):
            engine.sample(ASKED, SAMPLING)
        assert changed.bodies == []
    finally:
        changed.stop()


def test_after_a_broken_connection_a_server_is_asked_again_which_policy_it_has(toy, engines, weights):
    server = toy(str(weights))

    def swap(handler, body):
        server.cards[0]["root"] = "/other/weights"
        return hang_up(handler, body)

    at_5 = iter([False] * 5 + [True] + [False] * 100)
    server.misdeed = lambda handler, body: next(at_5) and swap(handler, body)
    with pytest.raises(StageError, match=rf"has /other/weights, and the policy is {weights}"):
        engines(server, weights, concurrency=1).sample(ASKED, SAMPLING)
    assert len(server.bodies) == 6


def adapter(folder, base):
    character_tokenizer(500).save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "r": 4}))
    return folder


def test_adapters_are_loaded_into_every_server_and_again_into_one_that_forgot(toy, engines, weights, tmp_path):
    servers = [toy(str(weights)), toy(str(weights))]
    engine = engines(servers, weights, policies="lora")
    one, two = adapter(tmp_path / "one", weights), adapter(tmp_path / "two", weights)
    engine.sample(ASKED, SAMPLING)
    engine.reload(one)
    engine.sample(ASKED, SAMPLING)
    engine.reload(two)
    engine.sample(ASKED, SAMPLING)
    roots = [{card["id"]: card.get("root") for card in server.cards} for server in servers]
    used = [Counter(roots[i][b["model"]] for b in server.bodies) for i, server in enumerate(servers)]
    assert used[0] + used[1] == Counter({str(weights): 24, str(one): 24, str(two): 24})
    assert min(min(count.values()) for count in used) >= 6
    servers[0].stop()
    servers[1].stop()
    back = servers[1].again()
    try:
        engine.sample([Request(prompt="back", seeds=(1, 2, 3))], SAMPLING)
        assert [card.get("root") for card in back.cards] == [str(weights), str(two)]
        assert {b["model"] for b in back.bodies} == {back.cards[1]["id"]}
    finally:
        back.stop()


def test_adapters_are_refused_where_they_cannot_be(toy, engines, weights, tmp_path):
    made = adapter(tmp_path / "adapter", weights)
    with pytest.raises(StageError, match=r"is an adapter, which .* was not started with: write `policies: lora`"):
        engines(toy(str(weights)), made)
    with pytest.raises(StageError, match=r"did not load the adapter .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        engines(toy(str(weights), adapters=False), made, policies="lora")
    with pytest.raises(StageError, match=r"has toy, and the policy is"):
        engines(toy(), made, policies="lora")
    impostor = toy(str(weights))
    engine = engines(impostor, made, policies="lora")
    impostor.cards[1]["root"] = "/elsewhere"
    with pytest.raises(StageError, match="not the adapter"):
        engine.reload(made)
    (made / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/nowhere", "r": 4}))
    with pytest.raises(StageError, match="there is no checkpoint in that folder"):
        engine.reload(made)
