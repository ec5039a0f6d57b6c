"""A 0.6M-parameter Llama with 64 characters, pretrained here and now on chain arithmetic, imperfectly on purpose.

Its demonstrations are partly bare answers and partly scratchpads with wrong steps, so that it can solve most problems
and seldom does: a policy with much to sharpen, made offline on two CPU cores in about a minute. A pure function of
config and seed (and of torch's build: another processor may round differently). Held-out prompts are never shown.

Source: Muon on the matrices, Jordan et al. 2024 (kellerjordan.github.io/posts/muon), AdamW on the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from strop.core.plugin import Config, stage
from strop.core.seeds import derive
from strop.plugins.tasks._scratchpad import draw, evaluate, scratchpad
from strop.plugins.tasks.chain_arithmetic import ChainArithmetic, heldout_problems

if TYPE_CHECKING:
    import numpy as np
    from transformers import LlamaForCausalLM

Share = Annotated[float, Field(ge=0, le=1)]
IGNORED = -100
_LENGTH_WEIGHTS = {1: 2.0, 2: 4.0, 3: 4.0, 4: 3.0, 5: 2.0, 6: 1.0, 7: 0.5}


class PretrainedChar(Config):
    """The model's shape, what it is shown, and for how long."""

    task: ChainArithmetic = ChainArithmetic()
    """The task it will meet: its held-out prompts are left out, its families and longest chains are shown."""
    hidden: PositiveInt = 128
    """Width of the residual stream."""
    layers: PositiveInt = 3
    """Transformer layers."""
    heads: PositiveInt = 4
    """Query heads; half as many key and value heads."""
    feed_forward: PositiveInt = 384
    """Width of the feed-forward layers."""
    context: PositiveInt = 256
    """Longest sequence, in characters."""
    steps: PositiveInt = 1600
    """Optimiser steps."""
    batch_tokens: PositiveInt = 1024
    """Tokens of a step, padding included."""
    lr_matrices: PositiveFloat = 4e-3
    """Peak learning rate of Muon."""
    lr_rest: PositiveFloat = 3e-3
    """Peak learning rate of AdamW, for embeddings and norms."""
    weight_decay: NonNegativeFloat = 0.0
    """Of both optimisers."""
    bare: Share = 0.4
    """Share of demonstrations that are the bare answer."""
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.08
    """Probability that a step of a scratchpad has a wrong value."""
    threads: PositiveInt = 2
    """Threads a batch is split over; part of the settings because sums in another order round differently."""


@stage("base")
def pretrained_char(
    config: PretrainedChar, *, directory: Path, seed: int, progress: Callable[[str, int, int], None]
) -> Path:
    """Pretrain the model and save it with its tokenizer as a Hugging Face directory."""
    import torch

    from strop.core.chars import character_tokenizer
    from strop.core.trainer.policy import quiet

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            model = _model(config)
        _pretrain(model, config, derive(seed, "demonstrations"), progress)
    finally:
        torch.set_num_threads(threads)
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(directory)
    character_tokenizer(config.context).save_pretrained(directory)
    return directory


def _model(config: PretrainedChar) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    from strop.core.chars import EOS, PAD, VOCABULARY

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=config.hidden,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=max(1, config.heads // 2),
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=VOCABULARY.index(EOS),
            pad_token_id=VOCABULARY.index(PAD),
        )
    )


def _pretrain(model: LlamaForCausalLM, config: PretrainedChar, seed: int, progress: Callable[..., None]) -> None:
    """Each step's batch is split over lanes, one thread each: two cores that share no operation wait for no barrier."""
    import torch

    lanes = [model, *(_lane(model) for _ in range(config.threads - 1))]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[Any] = [
        *(
            torch.optim.Muon(matrices[i :: config.threads], lr=config.lr_matrices, weight_decay=config.weight_decay)
            for i in range(config.threads)
        ),
        torch.optim.AdamW(rest, lr=config.lr_rest, weight_decay=config.weight_decay, betas=(0.9, 0.98)),
    ]
    peaks = [group["lr"] for o in optimizers for group in o.param_groups]
    batches = _batches(config, random.Random(seed))
    with ThreadPoolExecutor(config.threads) as pool:
        for step, (ids, targets) in enumerate(batches):
            scale = min(1.0, (step + 1) / (0.03 * config.steps + 1), (config.steps - step) / (0.5 * config.steps))
            for group, peak in zip((g for o in optimizers for g in o.param_groups), peaks, strict=True):
                group["lr"] = peak * scale
            tokens = int((targets != IGNORED).sum())
            shares = [(ids[i :: len(lanes)], targets[i :: len(lanes)], tokens) for i in range(len(lanes))]
            list(pool.map(_backward, lanes, shares))
            _gather(lanes)
            list(pool.map(lambda optimizer: optimizer.step(), optimizers))
            model.zero_grad()
            if (step + 1) % 25 == 0 or step + 1 == config.steps:
                progress("pretraining", step + 1, config.steps)


def _lane(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same weights, not a copy of them, with gradients of its own."""
    import copy

    lane = copy.deepcopy(model)
    for mine, theirs in zip(lane.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data
    return lane


def _backward(model: LlamaForCausalLM, share: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]) -> None:
    """Gradient of the share's part of the mean over tokens; no mask is needed: padding is on the right."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)  # this thread's own
    ids, targets, tokens = share
    if not len(ids):
        return
    hidden = model.model(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
    logits = F.linear(hidden, model.lm_head.weight).flatten(0, 1)
    loss = F.cross_entropy(logits, torch.from_numpy(targets).flatten(), ignore_index=IGNORED, reduction="sum")
    (loss / tokens).backward()  # type: ignore[no-untyped-call]


def _gather(lanes: list[LlamaForCausalLM]) -> None:
    """Add the lanes' gradients to the first one's."""
    for lane in lanes[1:]:
        for total, part in zip(lanes[0].parameters(), lane.parameters(), strict=True):
            if part.grad is not None:
                total.grad = part.grad if total.grad is None else total.grad.add_(part.grad)
                part.grad = None


def _batches(config: PretrainedChar, rng: random.Random) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """As many batches as steps, each of demonstrations of about one length: ids [B, T] and targets [B, T]."""
    import numpy as np

    from strop.core.chars import EOS, VOCABULARY

    index = {piece: i for i, piece in enumerate(VOCABULARY)}
    heldout = {p.prompt for p in heldout_problems(config.task)}
    found: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    while len(found) < config.steps:
        pool = [_demonstration(config, rng, heldout) for _ in range(4096)]
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        chunk = []
        while pool:
            longest = len(pool[-1][0]) + len(pool[-1][1])
            rows = max(1, config.batch_tokens // longest)
            chunk.append(pool[-rows:])
            del pool[-rows:]
        rng.shuffle(chunk)
        for members in chunk[: config.steps - len(found)]:
            width = max(len(p) + len(c) for p, c in members)
            ids = np.zeros((len(members), width), dtype=np.int64)
            targets = np.full((len(members), width), IGNORED, dtype=np.int64)
            for row, (prompt, completion) in enumerate(members):
                tokens = [index[c] for c in prompt + completion] + [index[EOS]]
                ids[row, : len(tokens) - 1] = tokens[:-1]
                targets[row, : len(tokens) - 1] = tokens[1:]
            found.append((ids, targets))
    return found


def _demonstration(config: PretrainedChar, rng: random.Random, heldout: set[str]) -> tuple[str, str]:
    lengths = range(1, config.task.max_operators + 1)
    weights = [_LENGTH_WEIGHTS.get(k, 0.5) for k in lengths]
    while True:
        chain = draw(rng, rng.choice(config.task.families), rng.choices(lengths, weights)[0])
        prompt = f"{chain}="
        if prompt not in heldout:
            break
    if rng.random() < config.bare:
        return prompt, str(evaluate(chain))
    return prompt, scratchpad(chain, rng, noise=config.noise)
