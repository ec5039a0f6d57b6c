"""A random Llama of 20k parameters, its character tokenizer, and examples of sums: real, and small enough for tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_llama import write_llama

if TYPE_CHECKING:
    from strop.core.trainer.job import TrainJob

CHARACTERS = ["<pad>", "<s>", "</s>", *"0123456789+-=", *"abcdefghijklmnop"]


def make_policy(directory: Path, *, seed: int = 0, dtype: str = "float32") -> Path:
    """Write the policy in Hugging Face format."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    write_llama(
        directory,
        seed=seed,
        dtype=dtype,
        vocab_size=len(CHARACTERS),
        intermediate_size=64,
        num_key_value_heads=1,
        max_position_embeddings=48,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)
    return directory


def sft_rows(n: int) -> list[dict[str, object]]:
    """Sums of two to five digits with their values; lengths differ."""
    rng = random.Random(0)
    rows: list[dict[str, object]] = []
    for i in range(n):
        digits = [rng.randint(1, 9) for _ in range(rng.randint(2, 5))]
        sums = [sum(digits[: k + 1]) for k in range(1, len(digits))]
        prompt, text = "+".join(map(str, digits)) + "=", "=".join(map(str, sums))
        rows.append({"example_id": 100 + i, "kind": "sft", "prompt": prompt, "completion": text})
    return rows


def group_rows(n: int) -> list[dict[str, object]]:
    """The same sums in groups of four, one to three of them with reward 1; sampled with log-probabilities about -1."""
    rng = random.Random(1)
    rows = []
    for i, row in enumerate(sft_rows(n)):
        ids = [CHARACTERS.index(c) for c in str(row["completion"])] + [CHARACTERS.index("</s>")]
        sampled = {"completion_token_ids": ids, "behaviour_logps": [-0.5 - rng.random() for _ in ids]}
        rows.append(row | sampled | {"kind": "group", "group_id": i // 4, "reward": float(i % 4 <= i // 4 % 3)})
    return rows


def pair_rows(n: int) -> list[dict[str, object]]:
    """The same sums, a wrong one rejected."""
    return [
        {
            "example_id": row["example_id"],
            "kind": "pair",
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": f"{row['completion']}0" if i % 2 else "7",
        }
        for i, row in enumerate(sft_rows(n))
    ]


def job(folder: Path, base: Path, rows: list[dict[str, object]], objective: str = "sft", **fields: Any) -> TrainJob:
    """Train that policy, the reference too, on those rows in that folder; `fields` are further ones of `TrainJob`."""
    from strop.core.trainer.job import TrainJob, write_examples

    usual = {"reference": base, "output": folder / "policy", "work": folder / "work", "seed": 0}
    examples = write_examples(folder / "examples.parquet", rows)
    return TrainJob(**{"init": base, "examples": examples, "objective": objective, **usual, **fields})
