"""Checkpoints and prompts for `generate.py`: the default base policy, and random ones of two larger sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch

from strop.core.chars import character_tokenizer
from strop.core.trainer.policy import quiet
from strop.plugins.base.pretrained_char import PretrainedChar, pretrained_char
from strop.plugins.tasks.chain_arithmetic import ChainArithmetic, heldout_problems

HEAD_SIZE = 32
CONTEXT = 512


@dataclass(frozen=True)
class Subject:
    """What is sampled."""

    name: str
    directory: Path
    prompts: list[str]
    max_tokens: int
    rollouts: int
    """Of a pass; n = 1 has no more than there are prompts."""


def subjects(folder: Path, trained: Path | None, sizes: list[str], quick: bool) -> list[Subject]:
    """The sizes asked for. `trained` is the default base policy; None = pretrain it, about a minute."""
    share = 1 if quick else 4
    arithmetic = [p.prompt for p in heldout_problems(ChainArithmetic())]
    random.Random(0).shuffle(arithmetic)
    made = {}
    if "0.6M" in sizes:
        policy = trained or pretrained_char(
            PretrainedChar(), directory=folder / "0.6M", seed=0, progress=lambda *_: None
        )
        made["0.6M"] = Subject("0.6M", policy, arithmetic, 96, 1024 * share)
    if "3M" in sizes:
        policy = random_policy(folder / "3M", hidden=256, layers=4, feed_forward=704, vocabulary=64)
        character_tokenizer(CONTEXT).save_pretrained(policy)
        made["3M"] = Subject("3M", policy, arithmetic, 96, 256 * share)
    if "30M" in sizes:
        policy = random_policy(folder / "30M", hidden=512, layers=8, feed_forward=1408, vocabulary=8192)
        made["30M"] = Subject("30M", policy, passages(policy), 48, 128 * share)
    return [made[size] for size in sizes]


def random_policy(directory: Path, *, hidden: int, layers: int, feed_forward: int, vocabulary: int) -> Path:
    """A Llama with random weights: it ends a text about as often as chance has it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_SIZE,
        num_key_value_heads=hidden // HEAD_SIZE // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def passages(directory: Path) -> list[str]:
    """A byte-pair tokenizer for the policy, learnt on Python's own manual, and 512 pieces of it of 32 to 96 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = "\n".join(topics.values())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    tokenizer.train_from_iterator(
        text.splitlines(), trainers.BpeTrainer(vocab_size=8192, special_tokens=special, show_progress=False)
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=CONTEXT
    ).save_pretrained(directory)
    ids = tokenizer.encode(text).ids
    rng = random.Random(0)
    begins = [rng.randrange(len(ids) - 100) for _ in range(512)]
    return [tokenizer.decode(ids[at : at + rng.randint(32, 96)]).replace("\ufffd", "") for at in begins]
