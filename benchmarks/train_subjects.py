"""Policies and examples for `train.py`: random policies of three sizes, and lengths of three kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from strop.core.chars import character_tokenizer
from strop.core.trainer.policy import quiet

CONTEXT = 512
SHAPES = {"0.6M": (128, 3, 384, 64, 4), "3M": (256, 4, 704, 64, 8), "30M": (512, 8, 1408, 8192, 16)}
"""Width, layers, width of the feed-forward part, vocabulary, heads; 0.6M is the default loop's."""
EXAMPLES = {"0.6M": 4096, "3M": 1024, "30M": 256}
Row = dict[str, object]


@dataclass(frozen=True)
class Data:
    """Examples of one kind and one length mix."""

    objective: str
    """sft or dpo"""
    rows: list[Row]

    @property
    def targets(self) -> int:
        """Tokens the loss covers: a character is one, and every completion ends with EOS."""
        return sum(len(str(row[key])) + 1 for row in self.rows for key in SIDES[self.objective])


SIDES = {"sft": ("completion",), "dpo": ("chosen", "rejected")}


def policy(folder: Path, size: str, vocabulary: int | None = None) -> Path:
    """A Llama with random weights and the default loop's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden, layers, feed_forward, tokens, heads = SHAPES[size]
    config = LlamaConfig(
        vocab_size=vocabulary or tokens,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    directory = folder / f"{size}-{vocabulary or tokens}"
    with quiet():
        LlamaForCausalLM(config).save_pretrained(directory)
    character_tokenizer(CONTEXT).save_pretrained(directory)
    return directory


def sums(rng: random.Random, i: int) -> tuple[str, str]:
    """The default loop's: sums of three to eight numbers with their value, half of them through every partial sum."""
    numbers = [rng.randint(1, 9) for _ in range(rng.randint(3, 8))]
    states = ["+".join(map(str, [sum(numbers[:k]), *numbers[k:]])) for k in range(2, len(numbers) + 1)]
    return "+".join(map(str, numbers)) + "=", "=".join(states) if i % 2 else states[-1]


def even(rng: random.Random, i: int) -> tuple[str, str]:
    """All of one length: 16 tokens of prompt, 64 of completion."""
    return _digits(rng, 16), _digits(rng, 63)


def long_tail(rng: random.Random, i: int) -> tuple[str, str]:
    """Half of the completions under 48 tokens, one in twenty over 200."""
    return _digits(rng, rng.randint(8, 40)), _digits(rng, min(400, int(rng.lognormvariate(3.87, 0.9)) + 1))


MIXES: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {"sums": sums, "even": even, "long tail": long_tail}


def data(objective: str, mix: str, n: int) -> Data:
    """SFT rows, or pairs whose rejected side is another completion of the mix."""
    rng = random.Random(0)
    rows: list[Row] = []
    for i in range(n):
        prompt, text = MIXES[mix](rng, i)
        row: Row = {"example_id": i, "prompt": prompt}
        if objective == "sft":
            row |= {"kind": "sft", "completion": text}
        else:
            row |= {"kind": "pair", "chosen": text, "rejected": MIXES[mix](rng, i)[1]}
        rows.append(row)
    return Data(objective, rows)


def _digits(rng: random.Random, n: int) -> str:
    return "".join(rng.choices("0123456789+=", k=n))
