"""Makes a small Hugging Face model directory for the examples, so that they run offline and without a download.

    python examples/make_model.py examples/model

The model is a Llama of half a million parameters that reads characters. It is shown word problems and three
reasoning-gym datasets, a third of them with a wrong answer, so that it is right only sometimes: something to sharpen.
Put your own model's directory (or its hub name) in the recipe instead.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import reasoning_gym
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from strop.core.chars import EOS, PAD, VOCABULARY, character_tokenizer

STEPS, ROWS, WRONG = 700, 24, 0.35
NAMES = ("ann", "bob", "eve", "tom", "zoe")
THINGS = ("apples", "books", "coins", "eggs", "pens")
GYM = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "spell_backward": {"min_word_len": 3, "max_word_len": 3},
}


def word_problem(rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 12), rng.randint(1, 9)
    if rng.random() < 0.5:
        return f"{name} has {a} {thing} and gets {b} more. how many {thing} now? ", str(a + b)
    return f"{name} has {a + b} {thing} and gives {b} away. how many {thing} now? ", str(a)


def demonstrations(rng: random.Random) -> list[tuple[str, str]]:
    """Questions with answers, some of them wrong."""
    found = [word_problem(rng) for _ in range(6000)]
    for name, config in GYM.items():
        data = reasoning_gym.create_dataset(name, size=2500, seed=1_000_003, **config)
        found += [(item["question"], str(item["answer"])) for item in data]
    rng.shuffle(found)
    answers = [answer for _, answer in found]
    return [(q, rng.choice(answers) if rng.random() < WRONG else a) for q, a in found]


def encoded(tokenizer, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets [rows, length]; only the answer is learnt."""
    rows = []
    for question, answer in pairs:
        prompt, ids = tokenizer(question)["input_ids"], tokenizer(question + answer + EOS)["input_ids"]
        rows.append((ids[:-1], [-100] * (len(prompt) - 1) + ids[len(prompt) :]))
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    return ids, torch.tensor([target + [-100] * (width - len(target)) for _, target in rows])


def main(directory: Path) -> None:
    """Pretrain and save the model, and a file of problems of one's own beside it."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(256)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=VOCABULARY.index(EOS),
            pad_token_id=VOCABULARY.index(PAD),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    pairs = demonstrations(random.Random(0))
    for step in range(STEPS):
        start = step * ROWS % (len(pairs) - ROWS)
        chunk = sorted(pairs[start : start + ROWS], key=lambda pair: len(pair[0]))
        ids, targets = encoded(tokenizer, chunk)
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {STEPS}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    print(f"wrote {directory}")


def write_problems(path: Path, n: int) -> None:
    """A JSONL file of word problems, as a user would have one."""
    rng = random.Random(1)
    seen = dict(word_problem(rng) for _ in range(n * 3))
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in list(seen.items())[:n]]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/model"))
