"""The hf engine against transformers, against plain arithmetic, and against itself in other batches."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from engine_tools import EOS, PROMPTS, check_stop_strings, chi_square, ids_of, requests, truncated

from strop.core.chars import VOCABULARY, character_tokenizer
from strop.core.engine import Request, Sampling
from strop.plugins.engines._draw import draw, streams, uniforms
from strop.plugins.engines._draw import truncated as truncated_rows
from strop.plugins.engines._llama import Llama
from strop.plugins.engines._modules import Modules
from strop.plugins.engines._plan import Item, plan
from strop.plugins.engines.hf import Hf, hf
from strop.storage.errors import StageError

SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 40, "eos_token_id": EOS}


def tiny(kind: str):
    """A random model whose next-token distributions are neither flat nor certain."""
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    match kind:
        case "llama":
            config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
        case "llama3":  # scaled rotary embedding, untied head, a head size of its own, no sharing of keys
            rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
            config = transformers.LlamaConfig(
                **LLAMA | {"num_key_value_heads": 4}, tie_word_embeddings=False, head_dim=16, rope_parameters=rope
            )
        case "qwen2":  # biases on q, k and v
            config = transformers.Qwen2Config(**LLAMA)
        case "qwen3":  # norms on q and k
            config = transformers.Qwen3Config(**LLAMA, head_dim=8)
        case "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
            config = transformers.GPT2Config(vocab_size=64, eos_token_id=EOS, bos_token_id=None, **sizes)
        case _:  # attention over the last 6 tokens
            config = transformers.MistralConfig(**LLAMA, sliding_window=6)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight) * (0.15 if weight.ndim == 2 else 0.1))
            if "embed" in name:
                weight.mul_(2.5)
    return model


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Directory of each kind of tiny policy."""
    root = tmp_path_factory.mktemp("policies")
    for kind in ("llama", "llama3", "qwen2", "qwen3", "gpt2", "mistral"):
        tiny(kind).save_pretrained(root / kind)
        character_tokenizer(40).save_pretrained(root / kind)
    return root


@pytest.fixture(scope="module")
def engine(policies):
    return hf(Hf(device="cpu"), directory=policies / "llama", threads=1)


def plain_logits(directory, text_ids: list[int]) -> torch.Tensor:
    """[T, V] by transformers alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([text_ids])).logits[0]


@pytest.mark.parametrize("kind", ["llama", "llama3", "qwen2", "qwen3"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_lean_forward_pass_gives_transformers_logits(kind, padded):
    model = tiny(kind)
    lean = Llama(model)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (3, 12), generator=generator)
    first = torch.tensor([0, 3, 5]) if padded else None
    with torch.inference_mode():
        mine, cache = lean.prefill(ids[:, :8], first, 4)
        found = [mine]
        for at in range(8, 12):
            found.append(lean.step(ids[:, at], cache))
        for row in range(3):
            begin = int(first[row]) if first is not None else 0
            own = model(ids[row : row + 1, begin:]).logits[0, 7 - begin :]
            torch.testing.assert_close(torch.stack([f[row] for f in found]), own, atol=1e-4, rtol=0)
        torch.testing.assert_close(lean.logits(ids), model(ids).logits, atol=1e-4, rtol=0)


def test_the_lean_cache_grows_and_shares_without_losing_a_column():
    model = tiny("llama")
    model.config.max_position_embeddings = 300
    lean = Llama(model)
    ids = torch.randint(3, 64, (2, 150), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits, cache = lean.prefill(ids[:, :3], None, 147)
        for at in range(3, 150):
            if at == 70:
                cache = cache.select(torch.tensor([1, 0, 1]))
                ids = ids[[1, 0, 1]]
            logits = lean.step(ids[:, at], cache)
        torch.testing.assert_close(logits, model(ids).logits[:, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llama", Llama), ("llama3", Llama), ("qwen2", Llama), ("qwen3", Llama), ("gpt2", Modules), ("mistral", Modules)],
)
def test_every_architecture_samples_what_a_full_forward_pass_confirms(policies, kind, expected):
    engine = hf(Hf(device="cpu"), directory=policies / kind, threads=1)
    assert type(engine.model) is expected
    sampling = Sampling(temperature=0.8, max_tokens=12)
    for prompt, completions in zip(PROMPTS, engine.sample(requests(3), sampling), strict=True):
        for completion in completions:
            ids = ids_of(prompt) + completion.token_ids
            logits = plain_logits(policies / kind, ids)[len(prompt) - 1 : -1]
            logps = torch.log_softmax(logits / 0.8, -1)
            chosen = logps.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            np.testing.assert_allclose(completion.logps, chosen.numpy(), atol=1e-4)
            entropy = -(logps.exp() * logps).sum(-1).mean()
            certainty = -(torch.log_softmax(logits, -1) + math.log(64)).mean()
            assert completion.entropy == pytest.approx(float(entropy), abs=1e-4)
            assert completion.self_certainty == pytest.approx(float(certainty), abs=1e-4)
            assert completion.finish_reason == ("stop" if completion.token_ids[-1] == EOS else "length")
            assert completion.text == "".join(VOCABULARY[i] for i in completion.token_ids if i > 2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_completion_is_the_same_in_any_batch(policies, kind):
    sampling = Sampling(max_tokens=20)
    engines = [hf(Hf(device="cpu", batch_rows=rows), directory=policies / kind, threads=1) for rows in (256, 7, 1)]
    together, small, alone = (e.sample(requests(6), sampling) for e in engines)
    reverse = engines[0].sample(requests(6)[::-1], sampling)[::-1]
    single = [
        [engines[0].sample([Request(prompt=r.prompt, seeds=(s,))], sampling)[0][0] for s in r.seeds]
        for r in requests(6)
    ]
    tokens = [[c.token_ids for c in cs] for cs in together]
    assert len({str(t) for ts in tokens for t in ts}) > 20
    for other in (small, alone, reverse, single):
        assert [[c.token_ids for c in cs] for cs in other] == tokens


def test_another_seed_gives_another_completion_and_the_same_seed_the_same(engine):
    sampling = Sampling(max_tokens=20)
    request = Request(prompt="1+2=", seeds=(5, 6, 5))
    first, second, third = engine.sample([request], sampling)[0]
    assert first == third
    assert first != second


def test_greedy_is_the_argmax_that_transformers_generates(policies):
    from transformers import AutoModelForCausalLM

    engine = hf(Hf(device="cpu"), directory=policies / "llama", threads=1)
    model = AutoModelForCausalLM.from_pretrained(policies / "llama").eval()
    greedy = engine.sample(requests(1), Sampling(temperature=0, max_tokens=15))
    for prompt, (completion,) in zip(PROMPTS, greedy, strict=True):
        ids = torch.tensor([ids_of(prompt)])
        own = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=15, pad_token_id=0
        )
        assert completion.token_ids == own[0, len(prompt) :].tolist()
        assert set(completion.logps) == {0.0}
        assert completion.entropy == 0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=1),
        Sampling(max_tokens=1, temperature=0.6),
        Sampling(max_tokens=1, top_k=5),
        Sampling(max_tokens=1, top_p=0.6),
        Sampling(max_tokens=1, min_p=0.05),
        Sampling(max_tokens=1, temperature=1.5, top_k=20, top_p=0.7),
        Sampling(max_tokens=1, temperature=2.0, top_k=30, top_p=0.9, min_p=0.2),
    ],
    ids=["plain", "cold", "top_k", "top_p", "min_p", "both", "all"],
)
def test_sampled_frequencies_follow_the_tempered_truncated_distribution(engine, policies, sampling):
    n = 6000
    completions = engine.sample([Request(prompt="2+2+2+2+2=", seeds=tuple(range(n)))], sampling)[0]
    p = truncated(plain_logits(policies / "llama", ids_of("2+2+2+2+2="))[-1].double().numpy(), sampling)
    observed = np.bincount([c.token_ids[0] for c in completions], minlength=64)
    assert observed[p == 0].sum() == 0
    assert abs(chi_square(observed, p * n)) < 4
    for completion in completions[:50]:
        assert completion.logps[0] == pytest.approx(math.log(p[completion.token_ids[0]]), abs=1e-4)
        assert completion.entropy == pytest.approx(-sum(x * math.log(x) for x in p if x > 0), abs=1e-4)


def test_truncation_by_hand():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def probabilities(**values) -> list[float]:
        sampling = Sampling(**values)
        found = {}
        for u in np.arange(0.005, 1, 0.01):
            drawn = draw(logits, torch.tensor([u]), sampling)
            found[int(drawn.tokens)] = round(math.exp(float(drawn.logps)), 4)
        return [found.get(i, 0.0) for i in range(4)]

    assert probabilities() == [0.4, 0.3, 0.2, 0.1]
    assert probabilities(top_k=2) == [0.5714, 0.4286, 0, 0]  # 4/7, 3/7
    assert probabilities(top_p=0.65) == [0.5714, 0.4286, 0, 0]  # .4 is not enough, .7 is
    assert probabilities(top_p=0.71) == [0.4444, 0.3333, 0.2222, 0]
    assert probabilities(top_p=1e-9) == [1, 0, 0, 0]
    assert probabilities(top_k=3, top_p=0.5) == [0.5714, 0.4286, 0, 0]  # 4/9 is not enough
    assert probabilities(min_p=0.7) == [0.5714, 0.4286, 0, 0]  # .3 is three quarters of .4
    assert probabilities(min_p=1.0) == [1, 0, 0, 0]
    assert probabilities(min_p=0.7, top_p=0.56) == [1, 0, 0, 0]  # 4/7 is enough
    assert probabilities(min_p=0.45, top_k=2) == [0.5714, 0.4286, 0, 0]
    assert probabilities(min_p=0.5, top_p=0.75) == [0.5714, 0.4286, 0, 0]  # of the .9 left, .7 is enough
    assert probabilities(min_p=0.3, temperature=0.5) == [0.64, 0.36, 0, 0]  # 16 : 9 : 4 : 1
    assert probabilities(temperature=0.5) == [0.5333, 0.3, 0.1333, 0.0333]  # squares over .30


@pytest.mark.parametrize("size", [1030, 2048, 50257])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(top_p=0.9),
        Sampling(top_p=0.999, temperature=1.7),
        Sampling(top_k=50, top_p=0.8),
        Sampling(top_k=200, min_p=0.02, top_p=0.9),
    ],
    ids=["plain", "small nucleus", "large nucleus", "top_k top_p", "top_k min_p"],
)
def test_large_vocabularies_follow_the_same_rules(size, sampling):
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(2, size, generator=generator) * 3).mul_(8).round_().div_(8)  # in steps, so that many tie
    for row in logits:
        p = truncated(row.double().numpy(), sampling)
        cumulated = p.cumsum()
        uniform = torch.rand(200, generator=generator, dtype=torch.float64)
        drawn = draw(row.expand(200, -1), uniform, sampling)
        assert (p[drawn.tokens] > 0).all()
        np.testing.assert_allclose(drawn.logps, np.log(p[drawn.tokens]), atol=2e-4)
        high, low = cumulated[drawn.tokens], cumulated[drawn.tokens] - p[drawn.tokens]
        assert ((low - 1e-5 <= uniform.numpy()) & (uniform.numpy() <= high + 1e-5)).all()


def test_of_tokens_that_tie_the_first_stay():
    tied = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1]])
    kept = {
        (6, 0.2): [1],
        (6, 0.5): [1, 3],
        (6, 0.65): [0, 1, 3],
        (6, 0.85): [0, 1, 2, 3, 4],
        (1, 1.0): [1],
        (4, 1.0): [0, 1, 2, 3],
    }
    for (top_k, top_p), expected in kept.items():
        assert truncated_rows(tied, Sampling(top_k=top_k, top_p=top_p))[0].nonzero().flatten().tolist() == expected


def test_the_inverse_cdf_takes_the_first_token_whose_mass_lies_above():
    logits = torch.tensor([[0.25, 0.0, 0.75]]).log()
    for u, token in ((0.0, 0), (0.2499, 0), (0.2501, 2), (1 - 2**-52, 2)):
        assert int(draw(logits, torch.tensor([u], dtype=torch.float64), Sampling()).tokens) == token
    impossible_first = torch.tensor([[0.0, 0.25, 0.75]]).log()
    assert int(draw(impossible_first, torch.tensor([0.0], dtype=torch.float64), Sampling()).tokens) == 1


def test_random_numbers_are_splitmix64_of_seed_and_step():
    start = streams([0, 1, 2**62 - 1, -1])
    block = uniforms(start, 0, 100)
    assert torch.equal(block[:, 40:], uniforms(start, 40, 60))
    assert float(block.min()) >= 0
    assert float(block.max()) < 1
    assert len(set(block.flatten().tolist())) == 400
    zero = uniforms(np.zeros(1, dtype=np.uint64), 0, 1)  # splitmix64 of 0 begins with 0xe220a8397b1dcdaf
    assert float(zero) == (0xE220A8397B1DCDAF >> 12) * 2.0**-52
    many = uniforms(streams(range(20_000)), 3, 1).flatten()  # neighbouring seeds are independent
    assert float(many.mean()) == pytest.approx(0.5, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([many[:-1], many[1:]]))[0, 1])) < 0.03


def test_self_certainty_is_zero_when_flat_and_grows_with_certainty():
    uniform = torch.tensor([0.5], dtype=torch.float64)
    flat, sharp = (draw(torch.tensor([row]), uniform, Sampling()) for row in ([1.0, 1, 1, 1], [9.0, 0, 0, 0]))
    assert float(flat.certainty) == pytest.approx(0, abs=1e-6)
    assert float(flat.entropy) == pytest.approx(math.log(4))
    z = math.log(math.exp(9) + 3)
    assert float(sharp.certainty) == pytest.approx(-(math.log(4) + (9 - 4 * z) / 4), abs=1e-5)


def test_a_stop_string_ends_a_completion_and_is_kept_out_of_the_text(engine):
    check_stop_strings(engine, 30)


def test_a_stop_token_ends_a_completion_and_stays_out_of_the_text(engine):
    free = [c for cs in engine.sample(requests(8), Sampling(max_tokens=30)) for c in cs]
    token = next(c for c in free if len(c.text) >= 12).token_ids[5]
    sampling = Sampling(max_tokens=30, stop_token_ids=(token, 63))
    checked = 0
    for before, after in zip(free, (c for cs in engine.sample(requests(8), sampling) for c in cs), strict=True):
        ends = [i for i, t in enumerate(before.token_ids) if t in (token, 63)]
        if not ends:
            assert after == before
            continue
        checked += 1
        assert after.token_ids == before.token_ids[: ends[0] + 1]
        np.testing.assert_allclose(after.logps, before.logps[: ends[0] + 1], atol=1e-5)
        assert after.text == "".join(VOCABULARY[i] for i in before.token_ids[: ends[0]])
        assert after.finish_reason == "stop"
    assert checked >= 3


def test_max_tokens_and_the_context_cut_a_completion_with_reason_length(engine):
    (short,) = engine.sample([Request(prompt="1+2=", seeds=tuple(range(30)))], Sampling(max_tokens=3))
    assert {len(c.token_ids) for c in short if c.finish_reason == "length"} == {3}
    prompt = "1" * 35
    (near,) = engine.sample([Request(prompt=prompt, seeds=tuple(range(30)))], Sampling(max_tokens=100))
    assert {len(c.token_ids) for c in near if c.finish_reason == "length"} == {5}  # the context is 40


def test_a_prompt_longer_than_the_context_is_an_error_row_beside_good_ones(engine):
    requests = [
        Request(prompt="1" * 40, seeds=(1, 2)),
        Request(prompt="1+2=", seeds=(3,)),
        Request(prompt="", seeds=(4,)),
    ]
    long, good, empty = engine.sample(requests, Sampling(max_tokens=5))
    assert [c.finish_reason for c in long] == ["error", "error"]
    assert long[0].error == "the prompt has 40 tokens, the policy's context is 40: no room for a completion"
    assert good == engine.sample(requests[1:2], Sampling(max_tokens=5))[0]
    assert empty[0].error == "the prompt has no tokens"
    assert engine.sample([], Sampling()) == []


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {}, {"min_p": 0.1}, {"top_p": 0.5}], ids=["greedy", "plain", "min_p", "top_p"]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_that_are_no_numbers_stop_the_stage_naming_the_policy(tmp_path, kind, values):
    model = tiny(kind)
    with torch.no_grad():
        next(model.parameters())[5, 3] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    character_tokenizer(40).save_pretrained(tmp_path / "broken")
    engine = hf(Hf(device="cpu"), directory=tmp_path / "broken", threads=1)
    with pytest.raises(StageError, match="broken gives logits that are not numbers"):
        engine.sample([Request(prompt="1+2=", seeds=(1,))], Sampling(max_tokens=4, **values))


def test_scores_are_the_untempered_log_probabilities_of_a_full_forward_pass(engine, policies):
    pairs = [("1+2=", "3"), ("3*4+5=", "12+5=17"), ("9=", ""), ("1+2=", "4+4+4+4+4")]
    for (prompt, continuation), found in zip(pairs, engine.score(pairs), strict=True):
        ids = ids_of(prompt + continuation)
        logps = torch.log_softmax(plain_logits(policies / "llama", ids), -1)
        expected = [float(logps[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_scores_agree_with_what_sampling_recorded(engine):
    (completions,) = engine.sample([Request(prompt="1+2=", seeds=tuple(range(10)))], Sampling(max_tokens=15))
    cut = [c for c in completions if c.finish_reason == "length" and EOS not in c.token_ids and len(c.text) == 15]
    assert cut
    for completion, found in zip(cut, engine.score([("1+2=", c.text) for c in cut]), strict=True):
        np.testing.assert_allclose(found, completion.logps, atol=1e-4)


def test_token_ids_are_scored_as_they_were_sampled(engine):
    (completions,) = engine.sample([Request(prompt="1+2=", seeds=tuple(range(200)))], Sampling(max_tokens=15))
    assert any(c.token_ids[-1] == EOS for c in completions)
    for completion, found in zip(completions, engine.score([("1+2=", c.token_ids) for c in completions]), strict=True):
        np.testing.assert_allclose(found, completion.logps, atol=1e-4)
    text, empty = engine.score([("1+2=", "3*4"), ("1+2=", [])])
    assert engine.score([("1+2=", ids_of("3*4")), ("1+2=", "")]) == [text, empty]
    assert empty == []


def test_what_cannot_be_scored_is_refused(engine):
    with pytest.raises(ValueError, match="empty prompt"):
        engine.score([("", "1")])
    with pytest.raises(ValueError, match="context is 40"):
        engine.score([("1" * 30, "1" * 11)])
    with pytest.raises(ValueError, match="context is 40"):
        engine.score([("1" * 30, [5] * 11)])


def test_progress_counts_up_to_all_rollouts_and_tokens(engine):
    told = []
    completions = engine.sample(requests(8), Sampling(max_tokens=20), lambda *numbers: told.append(numbers))
    tokens = sum(len(c.token_ids) for cs in completions for c in cs)
    assert told[-1] == (40, tokens)
    assert told == sorted(told)


def test_batches_hold_every_sample_once_within_their_limits():
    items = [
        Item(i, range(n), [1] * length, tuple(range(n)), 10)
        for i, (n, length) in enumerate([(3, 4), (20, 4), (1, 9), (2, 4), (5, 30), (0, 4)])
    ]
    batches = plan(items, rows=8, tokens=200)
    seen = sorted((item.request, i) for batch in batches for item in batch for i in item.samples)
    assert seen == sorted((i, j) for i, n in enumerate((3, 20, 1, 2, 5)) for j in range(n))
    for batch in batches:
        rows = sum(len(item.seeds) for item in batch)
        assert rows <= 8
        assert rows * max(len(item.prompt) + item.limit for item in batch) <= 200
        assert all(list(item.seeds) == list(item.samples) for item in batch)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_adapters_are_merged_on_load(policies, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(policies / "llama")
    torch.manual_seed(3)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    character_tokenizer(40).save_pretrained(tmp_path / "adapter")
    engine = hf(Hf(device="cpu"), directory=tmp_path / "adapter", threads=1)
    assert isinstance(engine.model, Llama)
    adapted.eval()
    with torch.no_grad():
        logps = torch.log_softmax(adapted(torch.tensor([ids_of("1+2=3")])).logits[0], -1)
    plain = hf(Hf(device="cpu"), directory=policies / "llama", threads=1)
    (found,) = engine.score([("1+2=", "3")])
    assert found[0] == pytest.approx(float(logps[3, ids_of("3")[0]]), abs=1e-4)
    assert abs(found[0] - plain.score([("1+2=", "3")])[0][0]) > 1e-3


def test_render_applies_the_chat_template_where_there_is_one(policies, tmp_path):
    import shutil

    shutil.copytree(policies / "llama", tmp_path / "chat")
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    chat = hf(Hf(device="cpu"), directory=tmp_path / "chat", threads=1)
    assert chat.render("1+2=") == "<user>1+2=>"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert chat.render("unused", messages) == "<system>be brief<user>hi>"
    off = hf(Hf(device="cpu", chat_template="off"), directory=tmp_path / "chat", threads=1)
    assert off.render("1+2=", messages) == "1+2="
    plain = hf(Hf(device="cpu"), directory=policies / "llama", threads=1)
    assert plain.render("1+2=") == "1+2="


def test_a_closed_engine_says_so(policies):
    engine = hf(Hf(device="cpu"), directory=policies / "llama", threads=1)
    engine.close()
    with pytest.raises(StageError, match="closed"):
        engine.sample([Request(prompt="1=", seeds=(1,))], Sampling())


def test_the_engine_declares_what_it_can_do(engine):
    assert engine.name == "hf"
    assert engine.capabilities == {"sample", "score", "next_logits", "hidden", "reload"}
    assert dataclasses.is_dataclass(Sampling)
