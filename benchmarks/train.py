"""How fast the trainer is, as a ratio to TRL's SFTTrainer on the same model, examples and step size in the same run.

    python benchmarks/train.py [--quick] [--json] [--threads N]

The model is the default loop's (0.6M parameters), the examples are sums of two to seven numbers, half of them worked
out step by step; one epoch in steps of about 1,024 target tokens. Both sides take turns, so that a busy machine slows
both; loading, tokenising and saving count on both sides, imports on neither.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from strop.core.chars import character_tokenizer
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train

BATCH_TOKENS = 1024


def make_policy(directory: Path) -> Path:
    """A random policy of the default loop's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    character_tokenizer(256).save_pretrained(directory)
    return directory


def make_rows(n: int) -> list[dict[str, object]]:
    """Sums with their values, half of them through every partial sum."""
    rng = random.Random(0)
    rows: list[dict[str, object]] = []
    for i in range(n):
        numbers = [rng.randint(1, 9) for _ in range(rng.randint(3, 8))]
        states = ["+".join(map(str, [sum(numbers[:k]), *numbers[k:]])) for k in range(2, len(numbers) + 1)]
        prompt, text = "+".join(map(str, numbers)) + "=", "=".join(states) if i % 2 else states[-1]
        rows.append({"example_id": i, "kind": "sft", "prompt": prompt, "completion": text})
    return rows


def ours(base: Path, rows: list[dict[str, object]], folder: Path, threads: int) -> float:
    """Seconds."""
    job = TrainJob(
        init=base,
        examples=write_examples(folder / "examples.parquet", rows),
        output=folder / "policy",
        work=folder / "work",
        objective="sft",
        train={"lr": 7e-4, "epochs": 1, "batch_tokens": BATCH_TOKENS, "precision": "float32"},
        seed=0,
        threads=threads,
    )
    start = time.perf_counter()
    train(job)
    return time.perf_counter() - start


def trl(base: Path, rows: list[dict[str, object]], folder: Path, threads: int, per_step: int) -> float:
    """Seconds; `per_step` examples a step, as many as ours has on average."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer, PrinterCallback

    library: Any = importlib.import_module("trl")
    disable_progress_bars()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    settings = library.SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=per_step,
        learning_rate=7e-4,
        lr_scheduler_type="linear",
        completion_only_loss=True,
        max_length=256,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    start = time.perf_counter()
    trainer = library.SFTTrainer(
        model=LlamaForCausalLM.from_pretrained(base),
        args=settings,
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["completion"]} for r in rows]),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / "policy"))
    return time.perf_counter() - start


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,024 examples once instead of 4,096 three times")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    chosen = parser.parse_args()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    rows = make_rows(1024 if chosen.quick else 4096)
    targets = sum(len(str(row["completion"])) + 1 for row in rows)
    per_step = round(len(rows) * BATCH_TOKENS / targets)
    seconds: dict[str, list[float]] = {"strop": [], "trl": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_policy(folder / "base")
        ours(base, rows[:32], folder / "warm", chosen.threads)
        trl(base, rows[:32], folder / "warm-trl", chosen.threads, per_step)
        for i in range(1 if chosen.quick else 3):
            seconds["strop"].append(ours(base, rows, folder / f"strop{i}", chosen.threads))
            seconds["trl"].append(trl(base, rows, folder / f"trl{i}", chosen.threads, per_step))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found = {
        "examples": len(rows),
        "target_tokens": targets,
        "strop_tokens_per_s": round(targets / median["strop"]),
        "trl_tokens_per_s": round(targets / median["trl"]),
        "ratio": round(median["trl"] / median["strop"], 2),
    }
    if chosen.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
