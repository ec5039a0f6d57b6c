"""The hf engine goes on with another policy, and hands out states and logits: against transformers and peft."""

import shutil

import pytest
import torch

from strop.core.chars import VOCABULARY, character_tokenizer
from strop.core.engine import Request, Sampling
from strop.plugins.engines._llama import Llama
from strop.plugins.engines._modules import Modules
from strop.plugins.engines.hf import Hf, hf
from strop.storage.errors import StageError

PAIRS = [("1+2=", "3*4+5"), ("9=", ""), ("3*4+5=", "12"), ("7=", "1+1+1+1+1+1")]
TARGETS = {"qwen2": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it


def random_model(kind: str, seed: int, hidden: int = 32):
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if kind == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": 2, "n_head": 4, "n_positions": 40}
        config = transformers.GPT2Config(vocab_size=64, eos_token_id=1, bos_token_id=None, **sizes)
    else:
        sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"vocab_size": 64, "intermediate_size": 48, "max_position_embeddings": 40, "eos_token_id": 1}
        config = transformers.Qwen2Config(**sizes, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    return model


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Of each kind: two of one shape, one of another, and three adapters on the first."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("policies")
    for kind, targets in TARGETS.items():
        for name, seed, hidden in (("first", 0, 32), ("second", 1, 32), ("wider", 2, 48)):
            random_model(kind, seed, hidden).save_pretrained(root / kind / name)
        for seed, name in enumerate(("one", "two", "dora")):
            model = random_model(kind, 0)
            model.name_or_path = str(root / kind / "first")
            torch.manual_seed(10 + seed)
            lora = {"r": 4 + seed, "lora_alpha": 8 * (seed + 1), "target_modules": targets, "init_lora_weights": False}
            adapters = LoraConfig(**lora, use_dora=name == "dora", fan_in_fan_out=kind == "gpt2")
            get_peft_model(model, adapters).save_pretrained(root / kind / name)
        for directory in (root / kind).iterdir():
            character_tokenizer(40).save_pretrained(directory)
    return root


def start(directory, lean: bool = True):
    return hf(Hf(device="cpu", lean=lean), directory=directory, threads=1)


@pytest.mark.parametrize(("kind", "expected"), [("qwen2", Llama), ("gpt2", Modules)])
def test_after_a_reload_the_policy_is_what_a_new_engine_would_have_loaded(policies, kind, expected):
    prompts, request = [p for p, _ in PAIRS], Request(prompt="1+2=", seeds=tuple(range(8)))
    engine = start(policies / kind / "first")
    seen = []
    for name in ("one", "two", "first", "second", "dora", "wider", "two", "second", "first"):
        engine.reload(policies / kind / name)
        new = start(policies / kind / name)
        assert type(engine.model) is type(new.model) is expected
        torch.testing.assert_close(engine.next_logits(prompts), new.next_logits(prompts), atol=1e-5, rtol=0)
        mine, theirs = (e.sample([request], Sampling(max_tokens=8))[0] for e in (engine, new))
        assert [c.token_ids for c in mine] == [c.token_ids for c in theirs]
        assert (engine.directory, engine.cached_tokens > 0) == (policies / kind / name, True)
        seen.append(engine.next_logits(prompts)[0])
    assert min(float((seen[i] - seen[j]).abs().max()) for i in range(5) for j in range(i)) > 0.05


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_adapters_are_swapped_without_reading_their_base_again(policies, kind, tmp_path):
    shutil.copytree(policies / kind, tmp_path / "here")
    for name in ("one", "two"):
        file = tmp_path / "here" / name / "adapter_config.json"
        file.write_text(file.read_text().replace(str(policies / kind / "first"), str(tmp_path / "here" / "first")))
    engine = start(tmp_path / "here" / "one")
    before = engine.model
    weights = [t.data_ptr() for t in tensors(before)]
    (tmp_path / "here" / "first" / "model.safetensors").unlink()
    for name in ("two", "one", "first"):
        engine.reload(tmp_path / "here" / name)
        new = start(policies / kind / name)
        torch.testing.assert_close(engine.next_logits(["1+2="]), new.next_logits(["1+2="]), atol=1e-5, rtol=0)
    assert engine.model is before
    assert [t.data_ptr() for t in tensors(before)] == weights


def tensors(model) -> list[torch.Tensor]:
    if isinstance(model, Modules):
        return list(model.model.parameters())
    return [model.embedding, model.head, *(t for layer in model.layers for t in (layer.qkv, layer.out, layer.down))]


def test_a_reload_that_fails_leaves_a_closed_engine(policies, tmp_path):
    engine = start(policies / "qwen2" / "first")
    orphan = shutil.copytree(policies / "qwen2" / "one", tmp_path / "orphan")
    (orphan / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere"}')
    with pytest.raises(StageError, match="names the base policy '/nowhere'"):
        engine.reload(orphan)
    with pytest.raises(StageError, match="is closed"):
        engine.next_logits(["1+2="])
    engine.reload(policies / "qwen2" / "second")
    assert engine.next_logits(["1+2="]).shape == (1, 64)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_states_and_logits_are_those_of_transformers(policies, kind):
    from transformers import AutoModelForCausalLM

    engine = start(policies / kind / "first")
    model = AutoModelForCausalLM.from_pretrained(policies / kind / "first").eval()
    found, logits = engine.hidden(PAIRS), engine.next_logits([p + c for p, c in PAIRS])
    assert logits.dtype == torch.float32
    for (prompt, continuation), states, row in zip(PAIRS, found, logits, strict=True):
        ids = [VOCABULARY.index(c) for c in prompt + continuation]
        with torch.no_grad():
            own = model(torch.tensor([ids]), output_hidden_states=True)
        assert states.dtype == torch.float32
        torch.testing.assert_close(states, own.hidden_states[-1][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(row, own.logits[0, -1], atol=1e-4, rtol=0)
        token_ids = ids[len(prompt) :]
        torch.testing.assert_close(engine.hidden([(prompt, token_ids)])[0], states, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="empty prompt"):
        engine.next_logits([""])
    with pytest.raises(ValueError, match="context is 40"):
        engine.hidden([("1" * 41, "")])
    assert engine.hidden([]) == []
    assert len(engine.next_logits([])) == 0


def test_long_and_many_sequences_are_worked_on_a_few_at_a_time(policies, monkeypatch):
    from strop.plugins.engines import _llama, _score

    engine = start(policies / "qwen2" / "first")
    prompts = ["1" * (1 + i % 30) for i in range(40)]
    requests = [Request(prompt=p, seeds=(i,)) for i, p in enumerate(prompts)]
    whole = engine.next_logits(prompts), engine.hidden([(p, "2") for p in prompts])
    sampled = engine.sample(requests, Sampling(max_tokens=6))
    for module in (_llama, _score):
        monkeypatch.setattr(module, "_ELEMENTS", 100 * engine.model.width)
    few = engine.next_logits(prompts), engine.hidden([(p, "2") for p in prompts])
    torch.testing.assert_close(few, whole, atol=1e-5, rtol=0)
    assert [c.token_ids for cs in engine.sample(requests, Sampling(max_tokens=6)) for c in cs] == [
        c.token_ids for cs in sampled for c in cs
    ]
