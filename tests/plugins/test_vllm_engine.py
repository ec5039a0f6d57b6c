"""The vllm engine against plain forward passes and the hf engine, with vLLM's CPU build: `make test-vllm`."""

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from engine_tools import (
    CONTEXT,
    EOS,
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
from strop.plugins.engines.hf import Hf, hf
from strop.plugins.engines.vllm import Vllm, vllm
from strop.storage.errors import StageError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SMALL = Vllm(cache_gb=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two policies of one shape, two adapters of the first, and one that changes the output layer of another."""
    folder = tmp_path_factory.mktemp("policies")
    make_policy(folder / "one", 0)
    make_policy(folder / "two", 1)
    make_adapter(folder / "one", folder / "adapter_a", 2)
    make_adapter(folder / "one", folder / "adapter_b", 3, rank=8)
    make_policy(folder / "untied", 5, tied=False)
    make_adapter(folder / "untied", folder / "adapter_head", 4, modules=["q_proj", "lm_head"])
    return folder


@pytest.fixture(scope="module")
def engine(root):
    made = vllm(SMALL, directory=root / "one", threads=2)
    yield made
    made.close()


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
        Sampling(temperature=1.3, top_k=12, max_tokens=12),
        Sampling(temperature=1.2, min_p=0.05, top_p=0.9, max_tokens=12),
    ],
    ids=["top_p", "top_k", "min_p"],
)
def test_log_probabilities_agree_with_a_plain_forward_pass_and_with_hf(one, root, sampling):
    plain = Plain(root / "one")
    reference = hf(Hf(device="cpu"), directory=root / "one", threads=1)
    rollouts = 0
    for prompt, completions in zip(PROMPTS, one.sample(requests(100), sampling), strict=True):
        for completion in completions:
            expected = plain.logps(prompt, completion.token_ids, sampling)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
            rollouts += 1
    for prompt, completions in zip(PROMPTS, reference.sample(requests(100), sampling), strict=True):
        for completion in completions:
            expected = plain.logps(prompt, completion.token_ids, sampling)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
            rollouts += 1
    assert rollouts == 1000


def test_the_same_seed_gives_the_same_completion_whatever_the_batch(one):
    sampling = Sampling(max_tokens=20)
    together = one.sample(requests(12), sampling)
    reverse = one.sample(requests(12)[::-1], sampling)[::-1]
    alone = [[one.sample([Request(prompt=r.prompt, seeds=(s,))], sampling)[0][0] for s in r.seeds] for r in requests(2)]
    tokens = [[c.token_ids for c in cs] for cs in together]
    assert len({str(t) for ts in tokens for t in ts}) > 40
    assert [[c.token_ids for c in cs] for cs in reverse] == tokens
    assert [[c.token_ids for c in cs] for cs in alone] == [ts[:2] for ts in tokens]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=1),
        Sampling(max_tokens=1, temperature=0.6),
        Sampling(max_tokens=1, top_k=5),
        Sampling(max_tokens=1, top_p=0.6),
        Sampling(max_tokens=1, min_p=0.1),
        Sampling(max_tokens=1, temperature=1.5, top_k=20, top_p=0.7, min_p=0.02),
    ],
    ids=["plain", "cold", "top_k", "top_p", "min_p", "all"],
)
def test_sampled_frequencies_follow_the_tempered_truncated_distribution(one, root, sampling):
    check_frequencies(one, root / "one", sampling, 4000)


def test_greedy_is_what_hf_gives(one, root):
    check_greedy(one, root / "one")


def test_a_stop_string_ends_a_completion_and_is_kept_out_of_the_text(one):
    check_stop_strings(one, 40)


def test_a_stop_token_ends_a_completion_and_is_no_part_of_its_text(one):
    comma = ids_of("3")[0]
    plain = Sampling(max_tokens=30)
    whole = one.sample(requests(20), plain)
    ended = one.sample(requests(20), Sampling(max_tokens=30, stop_token_ids=(comma,)))
    cut = 0
    for before, after in zip((c for cs in whole for c in cs), (c for cs in ended for c in cs), strict=True):
        if comma not in before.token_ids:
            assert after.token_ids == before.token_ids
            continue
        at = before.token_ids.index(comma) + 1
        assert after.token_ids == before.token_ids[:at]
        assert after.finish_reason == "stop"
        assert "3" not in after.text
        cut += 1
    assert cut > 10


def test_a_stop_string_saves_the_tokens_after_it(one):
    seen = []
    request = Request(prompt="1+2=", seeds=tuple(range(20)))
    (free,) = one.sample([request], Sampling(max_tokens=200))
    letter = max(VOCABULARY[3:], key=lambda c: sum(x.text.count(c) for x in free))
    one.sample([request], Sampling(max_tokens=200, stop=(letter,)), lambda rollouts, tokens: seen.append(tokens))
    assert seen[-1] < 0.5 * sum(len(c.token_ids) for c in free)


def test_a_prompt_longer_than_the_context_is_an_error_row_beside_good_ones(one):
    asked = [
        Request(prompt="1" * CONTEXT, seeds=(1, 2)),
        Request(prompt="1+2=", seeds=(3,)),
        Request(prompt="", seeds=(4,)),
    ]
    long, good, empty = one.sample(asked, Sampling(max_tokens=5))
    assert [c.finish_reason for c in long] == ["error", "error"]
    assert "288 tokens" in long[0].error
    assert "context is 288" in long[0].error
    assert good[0].finish_reason in {"stop", "length"}
    assert "no tokens" in empty[0].error


def test_prompts_of_more_tokens_than_a_step_takes_are_sampled(one, root):
    prompts = [f"{i:02}" + "".join(str((i + j * j) % 10) for j in range(250)) for i in range(40)]
    asked, sampling = requests(1, prompts), Sampling(max_tokens=4)
    assert sum(map(len, prompts)) > 10_000
    check(one.sample(asked, sampling), asked, root / "one", sampling)


def test_the_context_cuts_a_completion(one):
    (near,) = one.sample([Request(prompt="1" * (CONTEXT - 3), seeds=tuple(range(20)))], Sampling(max_tokens=50))
    assert {len(c.token_ids) for c in near if c.finish_reason == "length"} == {3}


def test_score_gives_the_log_probabilities_of_continuations_and_labels(one, root):
    plain = Plain(root / "one")
    whole = "7" * (CONTEXT - 10)
    pairs = [("1+2=", c) for c in "0123456789abcdefghijklmnopqrstuvwxyz"]
    pairs += [("1+2=", "12+3"), ("1+2=1", "2+3"), ("9=", ""), (whole, "0123456789"), (LONG, "99")]
    one.sample([Request(prompt=LONG, seeds=(1,))], Sampling(max_tokens=2))  # its block is cached now
    for (prompt, tail), found in zip(pairs, one.score(pairs), strict=True):
        expected = plain.logps(prompt, ids_of(tail), Sampling()) if tail else []
        np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match="context is 288"):
        one.score([(whole, "0123456789a")])


def test_what_was_sampled_is_scored_by_its_own_tokens_the_last_one_included(one):
    sampled = [
        (r.prompt, c) for r, cs in zip(requests(8), one.sample(requests(8), Sampling()), strict=True) for c in cs
    ]
    assert any(c.token_ids[-1] == EOS for _, c in sampled)
    for (_, c), found in zip(sampled, one.score([(prompt, c.token_ids) for prompt, c in sampled]), strict=True):
        np.testing.assert_allclose(found, c.logps, atol=1e-4)
    with pytest.raises(ValueError, match="empty prompt"):
        one.score([("", "1")])


def test_new_weights_are_used_in_the_live_child_and_nothing_cached_of_the_old(one, root):
    child = one.processes[0].process.pid
    sampling = Sampling(max_tokens=10)
    asked = requests(3, [*PROMPTS, LONG])
    before = one.sample(asked, sampling)
    started = time.perf_counter()
    one.reload(root / "two")
    took = time.perf_counter() - started
    after = one.sample(asked, sampling)
    assert one.processes[0].process.pid == child
    assert [c.token_ids for cs in after for c in cs] != [c.token_ids for cs in before for c in cs]
    check(after, asked, root / "two", sampling)
    one.reload(root / "one")
    assert one.sample(asked, sampling) == before
    assert took < 5, f"{took:.2f} s to reload"


def test_adapters_are_swapped_in_one_child_and_one_of_other_layers_brings_a_new(root):
    sampling = Sampling(max_tokens=8)
    asked = requests(4, [*PROMPTS, LONG])
    engine = vllm(SMALL, directory=root / "adapter_a", threads=2)
    try:
        child = engine.processes[0].process.pid
        first = engine.sample(asked, sampling)
        check(first, asked, root / "adapter_a", sampling)
        engine.reload(root / "adapter_b")
        check(engine.sample(asked, sampling), asked, root / "adapter_b", sampling)
        engine.reload(root / "one")
        check(engine.sample(asked, sampling), asked, root / "one", sampling)
        engine.reload(root / "adapter_a")
        assert engine.sample(asked, sampling) == first
        assert engine.processes[0].process.pid == child
        for name in ("adapter_a", "adapter_head"):
            engine.reload(root / name)
            pairs = [("1+2=", "34"), (LONG, "5"), ("1+2=", "39")]
            plain = Plain(root / name)
            for (prompt, tail), found in zip(pairs, engine.score(pairs), strict=True):
                np.testing.assert_allclose(found, plain.logps(prompt, ids_of(tail), Sampling()), atol=2e-4)
        assert engine.processes[0].process.pid != child
    finally:
        engine.close()


def test_replicas_share_the_work_and_give_the_same_completions(one, root):
    sampling = Sampling(max_tokens=10)
    expected = one.sample(requests(3), sampling)
    seen = []
    engine = vllm(SMALL.model_copy(update={"data_parallel": 2}), directory=root / "one", threads=2)
    try:
        assert len({p.process.pid for p in engine.processes}) == 2
        assert engine.sample(requests(3), sampling, lambda *done: seen.append(done)) == expected
        assert seen[-1] == (15, sum(len(c.token_ids) for cs in expected for c in cs))
        assert engine.score([("1+2=", "3")] * 2) == one.score([("1+2=", "3")] * 2)
        os.kill(engine.processes[1].process.pid, signal.SIGKILL)
        with pytest.raises(StageError, match=r"vLLM was ended by SIGKILL \(out of memory\?\)"):
            engine.sample(requests(3), sampling)
        assert engine.processes == []
    finally:
        engine.close()


def test_a_child_killed_while_it_samples_is_an_error_and_closing_frees_the_memory(root):
    engine = vllm(SMALL, directory=root / "one", threads=2)
    child = psutil.Process(engine.processes[0].process.pid)
    held = child.memory_info().rss
    killer = threading.Timer(1.0, child.kill)
    many = [Request(prompt="1+2=", seeds=tuple(range(20_000)))]
    killer.start()
    with pytest.raises(StageError, match="ended by SIGKILL"):
        engine.sample(many, Sampling(max_tokens=200))
    with pytest.raises(StageError, match="closed"):
        engine.sample(many, Sampling())
    engine.reload(root / "two")
    child = psutil.Process(engine.processes[0].process.pid)
    family = [child, *child.children(recursive=True)]
    log = engine.processes[0].log
    started = time.perf_counter()
    engine.close()
    assert time.perf_counter() - started < 8
    assert held > 2e8
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert not log.exists()


def test_logits_that_are_not_numbers_name_the_policy(one, root, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(root / "one", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    one.reload(broken)
    with pytest.raises(StageError, match=r"broken gives logits that are not numbers"):
        one.sample(requests(2), Sampling(max_tokens=5))


def test_a_policy_vllm_cannot_run_is_an_error_that_quotes_it(root, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(root / "one", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(StageError, match="NoSuchModel"):
        vllm(SMALL, directory=other, threads=1)
