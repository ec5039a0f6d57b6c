"""Makes a small Hugging Face model directory for the examples, so that they run offline and without a download.

    python examples/make_model.py examples/model

The model is a Llama of a tenth of a million parameters that reads characters. It is shown word problems (none of
`problems.jsonl`) and problems of three reasoning-gym datasets, many of them with a wrong answer, so that it is right
only sometimes: something to sharpen. Put your own model's directory (or its hub name) in the recipe instead.

Source: Muon on the matrices, Jordan et al. 2024 (kellerjordan.github.io/posts/muon), AdamW on the rest.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import reasoning_gym
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from strop.core.chars import EOS, PAD, VOCABULARY, character_tokenizer

STEPS, ROWS, WRONG = 1000, 32, 0.35
NAMES = ("Ann", "Bob", "Eve", "Tom", "Zoe", "Max", "Ida", "Leo")
THINGS = ("apples", "books", "coins", "eggs", "pens", "plums")
GYM: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+", "-", "*"],
        "allow_parentheses": False,
        "allow_negation": False,
    },
    "spell_backward": {"min_word_len": 3, "max_word_len": 3},
}
Demonstrations = list[tuple[str, str]]


def word_problem(rng: random.Random) -> dict[str, str | int]:
    """A line of a JSONL file such as one's own."""
    name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 9), rng.randint(1, 9)
    question, answer, category = rng.choice(
        [
            (f"{name} has {a} {thing} and gets {b} more. How many now?", a + b, "more"),
            (f"{name} buys {a} {thing}, then {b} {thing}. How many in all?", a + b, "more"),
            (f"{name} has {a + b} {thing} and gives {b} away. How many now?", a, "fewer"),
            (f"Of {a + b} {thing} {name} takes {b}. How many are left?", a, "fewer"),
        ]
    )
    return {"question": question, "answer": answer, "category": category}


def write_problems(path: Path, n: int) -> None:
    """A JSONL file of word problems, no two the same."""
    rng = random.Random(1)
    found = {str(p["question"]): p for p in map(word_problem, [rng] * (2 * n))}
    lines = [json.dumps({"id": f"w{i:03}", **p}) for i, p in enumerate(list(found.values())[:n], start=1)]
    path.write_text("\n".join(lines) + "\n")


def demonstrations(rng: random.Random, n: int) -> Demonstrations:
    """Questions with answers, `WRONG` of them with the answer of another question of their kind."""
    words = map(word_problem, [rng] * (n // 2))
    kinds: list[Demonstrations] = [[(str(p["question"]), str(p["answer"])) for p in words]]
    for name, config in GYM.items():
        data = reasoning_gym.create_dataset(name, size=n // 6, seed=1_000_003, **config)
        kinds.append([(str(item["question"]), str(item["answer"])) for item in data])
    lines = Path(__file__).with_name("problems.jsonl").read_text().splitlines()
    own = {json.loads(line)["question"] for line in lines}
    found = []
    for kind in kinds:
        answers = [answer for _, answer in kind]
        found += [(q, rng.choice(answers) if rng.random() < WRONG else a) for q, a in kind if q not in own]
    rng.shuffle(found)
    return found


def encoded(tokenizer: PreTrainedTokenizerFast, pairs: Demonstrations) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets [rows, length]; only the answer is learnt."""
    rows = []
    for question, answer in pairs:
        prompt, ids = tokenizer(question)["input_ids"], tokenizer(question + answer + EOS)["input_ids"]
        rows.append((ids[:-1], [-100] * (len(prompt) - 1) + ids[len(prompt) :]))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in rows])
    return ids, torch.tensor([target + [-100] * (width - len(target)) for _, target in rows])


def new_model() -> LlamaForCausalLM:
    """Untrained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=VOCABULARY.index(EOS),
            pad_token_id=VOCABULARY.index(PAD),
        )
    )


def main(directory: Path, steps: int) -> None:
    """Pretrain the model and save it with its tokenizer."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer, model = character_tokenizer(256), new_model()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0), torch.optim.AdamW(rest, lr=0.01)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 40, 1.5 * (1 - step / steps)))
        for o in optimizers
    ]
    pairs, started = demonstrations(random.Random(0), steps * ROWS), time.monotonic()
    for step in range(steps):
        ids, targets = encoded(tokenizer, pairs[step * ROWS % (len(pairs) - ROWS) :][:ROWS])
        loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}, loss {loss.item():.2f}, {time.monotonic() - started:.0f} s", flush=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    print(f"wrote {directory}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a small model for the examples.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path(__file__).with_name("model"))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of pretraining (default: {STEPS})")
    parser.add_argument("--problems", type=Path, help="write a file of word problems and make no model")
    arguments = parser.parse_args()
    if arguments.problems:
        write_problems(arguments.problems, 400)
    else:
        main(arguments.directory, arguments.steps)
