"""What is exported for TRL goes through TRL's own utilities and trainers."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from exchange_rows import CHAT, fill
from tiny_llama import write_llama

from strop.core.chars import character_tokenizer
from strop.storage.console import open_console
from strop.storage.exchange.export import export
from strop.storage.exchange.selection import Selection
from strop.storage.lake import open_lake

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
FORMATS = {"pairs": "chosen", "sft": "completion", "rollouts": "completion", "unpaired": "label", "prompts": "prompt"}


@pytest.fixture(scope="module")
def sets(empty_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """Every data set TRL has a type for, as `datasets` loads the export."""
    import datasets

    home = tmp_path_factory.mktemp("trl")
    shutil.copytree(empty_lake, home / "lake")
    with open_lake(home / "lake") as lake:
        fill(lake)
    found = {}
    with open_console(home / "lake") as console:
        for what in FORMATS:
            for format in ("trl", "trl-chat"):
                path = home / f"{what}-{format}"
                asked = Selection(split="train", scorer="answer")
                export(console, what, format, path, asked)
                found[what, format] = datasets.load_dataset(str(path), split="train", cache_dir=str(home / "cache"))
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = character_tokenizer(256)
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize("what", FORMATS)
def test_trl_tells_standard_from_conversational(sets: dict[tuple[str, str], Any], what: str) -> None:
    from trl.data_utils import is_conversational

    assert not is_conversational(sets[what, "trl"][0])
    assert is_conversational(sets[what, "trl-chat"][0])


@pytest.mark.parametrize("what", FORMATS)
def test_the_chat_template_is_applied_once(sets: dict[tuple[str, str], Any], tokenizer: Any, what: str) -> None:
    from trl.data_utils import apply_chat_template, maybe_apply_chat_template

    conversational = sets[what, "trl-chat"]
    row = next(row for row in conversational if row["prompt"] == CHAT)
    made = apply_chat_template(row, tokenizer)
    assert made["prompt"] == "<s>Be brief.<u>3+3=<a>", "what the sampler saw, exactly"
    if what == "pairs":
        assert (made["chosen"], made["rejected"]) == ("6<eos>", "7<eos>")
    elif what != "prompts":
        assert made["completion"].endswith("<eos>")
    plain = sets[what, "trl"][0]
    assert maybe_apply_chat_template(plain, tokenizer) == plain


def test_pairs_can_be_unpaired_and_their_prompt_found(sets: dict[tuple[str, str], Any]) -> None:
    from trl.data_utils import extract_prompt, maybe_extract_prompt, unpair_preference_dataset

    for format in ("trl", "trl-chat"):
        pairs = sets["pairs", format]
        single = unpair_preference_dataset(pairs)
        assert sorted(single.column_names) == ["completion", "label", "prompt"]
        assert list(single["label"]) == [True, True, False, False]
        assert maybe_extract_prompt(pairs[0]) == pairs[0], "the prompt is explicit already"
    row = sets["pairs", "trl-chat"][1]
    implicit = {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}
    assert extract_prompt(implicit) == row


def trained(trainer: str, data: Any, tokenizer: Any, out: Path) -> Any:
    """One step of a TRL trainer on a random model of two small layers."""
    import trl

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    write_llama(out / "model", pad_token_id=0, eos_token_id=1, bos_token_id=None, **shape)
    config = getattr(trl, f"{trainer}Config")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and torch, about themselves
        made = getattr(trl, f"{trainer}Trainer")(
            model=str(out / "model"),
            args=config(
                output_dir=str(out), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False
            ),
            train_dataset=data,
            processing_class=tokenizer,
        )
        made.train()
    return made


@pytest.mark.parametrize(
    ("trainer", "what", "format"),
    [
        ("SFT", "sft", "trl"),
        ("SFT", "rollouts", "trl-chat"),
        ("DPO", "pairs", "trl"),
        ("DPO", "pairs", "trl-chat"),
        ("KTO", "unpaired", "trl"),
        ("KTO", "unpaired", "trl-chat"),
    ],
)
def test_trainers_take_a_step_on_it(
    sets: dict[tuple[str, str], Any], tokenizer: Any, tmp_path: Path, trainer: str, what: str, format: str
) -> None:
    made = trained(trainer, sets[what, format], tokenizer, tmp_path)
    assert made.state.global_step == 1
    assert made.state.log_history[-1]["train_loss"] > 0
