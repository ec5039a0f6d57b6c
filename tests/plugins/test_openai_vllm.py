"""The engine `openai` against a real `vllm serve` (CPU build), which Strop starts itself: `make test-vllm`."""

import os
import shutil

import numpy as np
import psutil
import pytest
from engine_tools import (
    CONTEXT,
    LONG,
    PROMPTS,
    Plain,
    check,
    check_frequencies,
    check_greedy,
    check_stop_strings,
    ids_of,
    make_adapter,
    make_policy,
    requests,
)

from strop.core.chars import VOCABULARY
from strop.core.engine import Request, Sampling
from strop.plugins.base.served import Served, served
from strop.plugins.engines.openai import Openai, openai
from strop.storage.errors import StageError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
COMMAND = (
    f"env TORCHDYNAMO_DISABLE=1 {os.environ.get('STROP_VLLM_PYTHON', 'python')} -m vllm.entrypoints.openai.api_server "
    "--model {base} --port {port} --dtype float32 --enforce-eager --no-enable-chunked-prefill "
    "--kv-cache-memory-bytes 200000000 --generation-config vllm"
)
ALL = f'{COMMAND} --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 8 --chat-template "{TEMPLATE}"'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    make_policy(folder / "one", 0)
    make_policy(folder / "two", 1)
    make_adapter(folder / "one", folder / "adapter_a", 2)
    make_adapter(folder / "one", folder / "adapter_b", 3, rank=8)
    return folder


def made(directory, scratch, *, needs=frozenset({"token_ids", "logps"}), **settings):
    return openai(Openai(**settings), directory=directory, threads=2, scratch=scratch, needs=needs)


@pytest.fixture(scope="module")
def engine(root, tmp_path_factory):
    found = made(root / "one", tmp_path_factory.mktemp("scratch"), serve=ALL)
    yield found
    found.close()


@pytest.fixture
def one(engine, root):
    """The engine with the first policy, whatever the test before left."""
    if engine.directory != root / "one":
        engine.reload(root / "one")
    return engine


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, top_p=0.9, max_tokens=12),
        Sampling(temperature=1.3, top_k=12, min_p=0.02, max_tokens=12),
    ],
    ids=["top_p", "top_k and min_p"],
)
def test_log_probabilities_agree_with_a_plain_forward_pass(one, root, sampling):
    assert one.can.logps == "sampled"
    plain, rollouts = Plain(root / "one"), 0
    for prompt, completions in zip(PROMPTS, one.sample(requests(60), sampling), strict=True):
        for completion in completions:
            expected = plain.logps(prompt, completion.token_ids, sampling)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
            assert completion.text == "".join(VOCABULARY[t] for t in completion.token_ids if t > 2)
            rollouts += 1
    assert rollouts == 300


def test_sampled_frequencies_follow_the_tempered_truncated_distribution(one, root):
    sampling = Sampling(max_tokens=1, temperature=1.5, top_k=20, top_p=0.7)
    check_frequencies(one, root / "one", sampling, 3000)


def test_the_same_seed_gives_the_same_completion_whatever_the_batch(one, root, tmp_path):
    sampling = Sampling(max_tokens=20)
    together = one.sample(requests(12), sampling)
    url = one.fleet.url
    again = made(root / "one", tmp_path, base_urls=(url,), concurrency=3)  # a journal of its own
    try:
        reverse = again.sample(requests(12)[::-1], sampling)[::-1]
    finally:
        again.close()
    assert len({str(c.token_ids) for cs in together for c in cs}) > 40
    assert [[c.token_ids for c in cs] for cs in reverse] == [[c.token_ids for c in cs] for cs in together]


def test_greedy_is_what_hf_gives(one, root):
    check_greedy(one, root / "one")


def test_a_stop_string_ends_a_completion_and_is_kept_out_of_the_text(one):
    check_stop_strings(one, 40)


def test_the_context_refuses_a_prompt_and_cuts_a_completion(one):
    asked = [Request(prompt="1" * CONTEXT, seeds=(1,)), Request(prompt="1" * (CONTEXT - 3), seeds=tuple(range(20)))]
    (long,), near = one.sample(asked, Sampling(max_tokens=50))
    assert long.finish_reason == "error"
    assert "context is 288" in long.error
    assert {len(c.token_ids) for c in near if c.finish_reason == "length"} == {3}


def test_score_gives_the_log_probabilities_of_texts_and_of_token_ids(one, root):
    plain = Plain(root / "one")
    pairs = [("1+2=", c) for c in "0123456789"] + [("1+2=", "12+3"), ("9=", ""), (LONG, "99")]
    for (prompt, tail), found in zip(pairs, one.score(pairs), strict=True):
        expected = plain.logps(prompt, ids_of(tail), Sampling()) if tail else []
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert one.score([("1+2=", ids_of("12+3"))]) == [pytest.approx(one.score([("1+2=", "12+3")])[0], abs=1e-5)]


def test_adapters_are_swapped_in_the_running_server_and_other_weights_start_a_new_one(one, root):
    sampling, asked = Sampling(max_tokens=8), requests(4, [*PROMPTS, LONG])
    process = one.fleet.serving[0].process.pid
    for name in ("adapter_a", "adapter_b", "one", "adapter_a"):
        one.reload(root / name)
        check(one.sample(asked, sampling), asked, root / name, sampling)
        assert one.fleet.serving[0].process.pid == process
    one.reload(root / "two")
    check(one.sample(asked, sampling), asked, root / "two", sampling)
    assert not psutil.pid_exists(process)


def test_a_running_server_is_given_adapters_and_refuses_another_policy(one, root, tmp_path):
    url = one.fleet.url
    engine = made(root / "adapter_b", tmp_path, base_urls=(url,), policies="lora")
    try:
        asked = requests(4)
        check(engine.sample(asked, Sampling(max_tokens=8)), asked, root / "adapter_b", Sampling())
        with pytest.raises(StageError, match=r"and the policy is .*two: start it with that directory"):
            engine.reload(root / "two")
    finally:
        engine.close()


def test_a_chat_is_answered_with_token_ids(one, tmp_path):
    url, model = one.fleet.url, one.fleet.pool.servers[0].model
    directory = served(Served(model=model), directory=tmp_path / "served")
    engine = made(directory, tmp_path / "scratch", base_urls=(url,), endpoint="chat")
    try:
        chat = engine.render("", [{"role": "user", "content": "1+"}, {"role": "user", "content": "2="}])
        (found,) = engine.sample([Request(prompt=chat, seeds=(1000, 1001))], Sampling(max_tokens=20))
        (plain,) = one.sample([Request(prompt="1+2=", seeds=(1000, 1001))], Sampling(max_tokens=20))
        assert [c.token_ids for c in found] == [c.token_ids for c in plain]
        assert all(c.n_prompt_tokens == 4 and len(c.logps) == len(c.token_ids) for c in found)
    finally:
        engine.close()


def test_logits_that_are_not_numbers_name_the_policy_and_untempered_numbers_are_noticed(root, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(root / "one", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"broken gives logits that are not numbers"):
        made(broken, tmp_path / "a", serve=COMMAND)
    raw = made(root / "one", tmp_path / "b", serve=COMMAND)
    try:
        assert raw.can.logps == "plain"
        check(raw.sample(requests(4), Sampling(max_tokens=8)), requests(4), root / "one", Sampling())
        pairs = [("1+2=", "12+3"), (LONG, "99"), ("9=", "1"), ("9=", "2")]
        for (prompt, tail), found in zip(pairs, raw.score(pairs), strict=True):
            np.testing.assert_allclose(found, Plain(root / "one").logps(prompt, ids_of(tail), Sampling()), atol=1e-4)
        with pytest.raises(StageError, match="neither tempered nor truncated: sample at temperature 1"):
            raw.sample(requests(1), Sampling(temperature=0.5))
    finally:
        raw.close()
