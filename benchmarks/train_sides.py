"""The sides of `train.py`: each trains a policy on examples, and says in what time.

python benchmarks/train_sides.py JSON    # trains once in this process and prints its peak of main memory
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from train_subjects import SIDES, Data, data

from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train

RATE = 1e-4


@dataclass(frozen=True)
class Pass:
    """One training."""

    wall_s: float
    cpu_s: float


def strop(
    base: Path, examples: Data, folder: Path, threads: int, batch_tokens: int, precision: str = "float32"
) -> Pass:
    """Strop's trainer with its defaults."""
    job = TrainJob(
        init=base,
        reference=base if examples.objective == "dpo" else None,
        examples=write_examples(folder / "examples.parquet", examples.rows),
        output=folder / "policy",
        work=folder / "work",
        objective=examples.objective,
        train={"lr": RATE, "epochs": 1, "batch_tokens": batch_tokens, "precision": precision},
        seed=0,
        threads=threads,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    train(job)
    return Pass(time.perf_counter() - wall, time.process_time() - cpu)


def trl(base: Path, examples: Data, folder: Path, threads: int, batch_tokens: int, **settings: Any) -> Pass:
    """TRL's SFTTrainer or DPOTrainer, without gradient checkpointing; as many examples a step as Strop's mean.

    `parts` of `settings` is how many micro-batches a step is cut into; the others are of its config.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    library: Any = importlib.import_module("trl")
    disable_progress_bars()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    per_step = max(1, round(len(examples.rows) * batch_tokens / examples.targets))
    parts = min(int(settings.pop("parts", 1)), per_step)
    name = examples.objective.upper()
    args = getattr(library, f"{name}Config")(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=max(1, per_step // parts),
        gradient_accumulation_steps=parts,
        learning_rate=RATE,
        max_length=None,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **{"bf16": False, **settings},
    )
    columns = ("prompt", *SIDES[examples.objective])
    wall, cpu = time.perf_counter(), time.process_time()
    trainer = getattr(library, f"{name}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list([{key: row[key] for key in columns} for row in examples.rows]),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / "policy"))
    return Pass(time.perf_counter() - wall, time.process_time() - cpu)


def peak(asked: dict[str, Any]) -> float:
    """MB of main memory above what the process held with everything imported."""
    folder = Path(asked["folder"])
    side = {"strop": strop, "trl": trl}[asked["side"]]
    warm = data(asked["objective"], "even", 2)
    side(Path(asked["warm"]), warm, folder / "warm", asked["threads"], 64, **asked["settings"])
    before = psutil.Process().memory_info().rss
    examples = data(asked["objective"], asked["mix"], asked["examples"])
    side(Path(asked["base"]), examples, folder, asked["threads"], asked["batch_tokens"], **asked["settings"])
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 1e6


if __name__ == "__main__":
    print(peak(json.loads(sys.argv[1])))
