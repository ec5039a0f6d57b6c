"""Base policies: the pretrained character model, and models that lie in a directory already."""

import json
import shutil

import pytest
import torch

from strop.core.chars import CHARACTERS, VOCABULARY, character_tokenizer
from strop.core.engine import Request, Sampling
from strop.plugins.base.huggingface import Huggingface, huggingface
from strop.plugins.base.pretrained_char import IGNORED, PretrainedChar, _batches, pretrained_char
from strop.plugins.engines.hf import Hf, hf
from strop.plugins.tasks._scratchpad import check_steps
from strop.plugins.tasks.chain_arithmetic import ChainArithmetic, heldout_problems, score_answer
from strop.storage.errors import StropError

SHORT = ChainArithmetic(families=("add",), min_operators=1, max_operators=2, heldout_per_category=20, train=100)
SMALL = PretrainedChar(task=SHORT, hidden=64, layers=2, feed_forward=192, steps=400, batch_tokens=256, threads=1)
TOY = SMALL.model_copy(update={"hidden": 16, "layers": 1, "steps": 4})


def nothing(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    told = []
    directory = tmp_path_factory.mktemp("base") / "small"
    made = pretrained_char(SMALL, directory=directory, seed=0, progress=lambda *numbers: told.append(numbers))
    assert made == directory
    return directory, told


def test_the_vocabulary_is_64_characters_and_any_text_of_them_survives():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 64
    tokenizer = character_tokenizer(32)
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert ids == [VOCABULARY.index(c) for c in CHARACTERS]
    assert tokenizer.decode(ids, skip_special_tokens=True) == CHARACTERS
    assert tokenizer("1€")["input_ids"] == [VOCABULARY.index("1"), VOCABULARY.index("<unk>")]
    assert tokenizer.decode([3, 1], skip_special_tokens=True) == VOCABULARY[3]


def test_the_default_model_has_about_600_thousand_parameters():
    from strop.plugins.base.pretrained_char import _model

    model = _model(PretrainedChar())
    assert sum(p.numel() for p in model.parameters()) == 598_912


def test_auto_classes_load_it_offline(small):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, _ = small
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer("3+4=")["input_ids"] == [VOCABULARY.index(c) for c in "3+4="]
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 1
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert {p.suffix for p in directory.iterdir()} == {".json", ".safetensors"}


def test_a_small_one_solves_some_held_out_problems_and_not_all(small):
    directory, _ = small
    engine = hf(Hf(device="cpu"), directory=directory, threads=1)
    problems = heldout_problems(SHORT)
    requests = [Request(prompt=p.prompt, seeds=tuple(range(8))) for p in problems]
    solved = [
        [score_answer(p, c.text).value for c in completions]
        for p, completions in zip(problems, engine.sample(requests, Sampling(max_tokens=24)), strict=True)
    ]
    share = sum(map(sum, solved)) / (8 * len(problems))
    assert 0.05 < share < 0.9
    assert sum(any(s) for s in solved) / len(problems) > 0.3


def test_progress_ends_at_the_last_step(small):
    _, told = small
    assert told[-1] == ("pretraining", 400, 400)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_the_same_config_and_seed_give_the_same_bytes_and_another_seed_others(tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed + 10)
        pretrained_char(TOY, directory=tmp_path / name, seed=seed, progress=nothing)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_torchs_own_random_state_and_threads_are_left_alone(tmp_path):
    torch.set_num_threads(1)
    before = torch.get_rng_state()
    pretrained_char(TOY.model_copy(update={"threads": 2}), directory=tmp_path / "x", seed=0, progress=nothing)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == 1


def demonstrations(config: PretrainedChar) -> list[tuple[str, str]]:
    import random

    shown = []
    for ids, targets in _batches(config, random.Random(0)):
        assert ids.shape == targets.shape
        for row, target in zip(ids, targets, strict=True):
            tokens = [int(row[0]), *(int(t) for t in target if t != IGNORED)]
            assert tokens[-1] == 1
            assert tokens[1:-1] == row[1 : len(tokens) - 1].tolist()
            text = "".join(VOCABULARY[t] for t in tokens[:-1])
            prompt, _, completion = text.partition("=")
            shown.append((prompt + "=", completion))
    return shown


def test_demonstrations_leave_out_held_out_prompts_and_keep_their_shares():
    config = SMALL.model_copy(
        update={"steps": 600, "task": ChainArithmetic(min_operators=2, max_operators=3, heldout_per_category=400)}
    )
    shown = demonstrations(config)
    assert not {prompt for prompt, _ in shown} & {p.prompt for p in heldout_problems(config.task)}
    chains = [(p, c) for p, c in shown if len(p) > 5]  # with one operator both forms are the same
    bare = sum("=" not in c for _, c in chains) / len(chains)
    assert bare == pytest.approx(0.4, abs=0.03)
    assert all(check_steps(p, c)[0].right for p, c in chains if "=" not in c)
    steps = [s.right for p, c in chains if "=" in c for s in check_steps(p, c)]
    assert 1 - sum(steps) / len(steps) == pytest.approx(0.08, abs=0.015)


def test_batches_are_as_many_as_steps_and_no_larger_than_asked():
    import random

    batches = _batches(SMALL, random.Random(0))
    assert len(batches) == 400
    assert all(ids.size <= 256 for ids, _ in batches)


def test_a_local_directory_is_used_where_it_lies(small, tmp_path):
    directory, _ = small
    target = tmp_path / "empty"
    before = sorted(p.name for p in directory.iterdir())
    assert huggingface(Huggingface(model=str(directory)), directory=target, progress=nothing) == directory.resolve()
    assert sorted(p.name for p in directory.iterdir()) == before
    assert not target.exists()


@pytest.mark.parametrize(
    ("removed", "complaint"),
    [
        ("model.safetensors", "lacks weights"),
        ("tokenizer.json", "lacks a tokenizer"),
        ("config.json", "lacks config.json"),
    ],
)
def test_a_directory_that_lacks_something_is_refused_by_name(small, tmp_path, removed, complaint):
    shutil.copytree(small[0], tmp_path / "model")
    (tmp_path / "model" / removed).unlink()
    with pytest.raises(StropError, match=complaint):
        huggingface(Huggingface(model=str(tmp_path / "model")), directory=tmp_path / "x", progress=nothing)


def test_pickled_weights_are_no_weights(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(StropError, match="safetensors"):
        huggingface(Huggingface(model=str(tmp_path / "model")), directory=tmp_path / "x", progress=nothing)


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/place", "plainname", "a/b/c"])
def test_what_is_neither_directory_nor_hub_id_is_refused(tmp_path, model):
    with pytest.raises(StropError, match="there is no directory"):
        huggingface(Huggingface(model=model), directory=tmp_path, progress=nothing)


def test_a_revision_of_a_directory_is_refused(small, tmp_path):
    with pytest.raises(StropError, match="has no revision 'main'"):
        huggingface(Huggingface(model=str(small[0]), revision="main"), directory=tmp_path, progress=nothing)


def test_a_hub_id_is_downloaded_as_safetensors_alone(small, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(repo, *, revision, local_dir, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        shutil.copytree(small[0], local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    target = tmp_path / "model"
    made = huggingface(Huggingface(model="owner/name", revision="v1"), directory=target, progress=nothing)
    assert made == target
    assert (asked["repo"], asked["revision"]) == ("owner/name", "v1")
    assert "*.safetensors" in asked["patterns"]
    assert not any(p.endswith((".bin", ".pt")) for p in asked["patterns"])


def test_a_failed_download_says_which_model(tmp_path, monkeypatch):
    import huggingface_hub

    def download(repo, **_):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(StropError, match=r"'owner/name' is no directory here.*offline"):
        huggingface(Huggingface(model="owner/name"), directory=tmp_path, progress=nothing)


def test_settings_travel_as_json():
    again = PretrainedChar.model_validate(json.loads(SMALL.model_dump_json()))
    assert again == SMALL
