"""Trains with one of TRL's trainers, in the trainer's own process, from TRL's last checkpoint on if there is one.

The model is loaded, saved and merged as for Strop's own objectives; only the steps between are TRL's.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from strop.core.seeds import derive
from strop.core.trainer.checkpoint import finished, save_policy
from strop.core.trainer.config import Train
from strop.core.trainer.encode import Item, encode
from strop.core.trainer.job import TrainJob, TrainResult, check_examples, read_examples, result_of
from strop.core.trainer.loop import SAVE_EVERY_S, SAVE_SHARE, Progress
from strop.core.trainer.policy import (
    ADAPTER,
    context_of,
    load_adapter,
    load_model,
    lora_config,
    pick_device,
    quiet,
    use_bfloat16,
    using_threads,
)
from strop.core.trainer.trl_config import LEARNS_FROM, Trl
from strop.core.trainer.trl_data import check_items
from strop.core.trainer.trl_trainers import trainer_of
from strop.storage.errors import StageError

NAMES = {"learning_rate": "lr"}
"""TRL's names in a log, and Strop's."""


def train(job: TrainJob, progress: Progress = lambda _: None) -> TrainResult:
    """Train `job`, whose `train` is a `Trl`, and write `job.output`; a finished job returns its result.

    Raises StageError: examples that TRL cannot be handed, settings it refuses, an output that is another job's, a
    loss that is not finite.
    """
    if (done := finished(job)) is not None:
        return done
    started = time.monotonic()
    config = Trl.model_validate(dict(job.train))
    with using_threads(config.threads or job.threads), quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        return _train(job, config, progress, started)


def _train(job: TrainJob, config: Trl, progress: Progress, started: float) -> TrainResult:
    from transformers import AutoTokenizer, PrinterCallback

    needs = ["behaviour_logps"] if config.trainer == "grpo" else []
    table = read_examples(job.examples)
    check_examples(table, kind=LEARNS_FROM[config.trainer], needs=needs, who=f"trl {config.trainer}")
    tokenizer = AutoTokenizer.from_pretrained(job.init)
    model, adapters, stored = _policy(job.init, config)
    items = _items(table, tokenizer, config, model)
    folder = job.work / f"trl-{job.key()}"
    made = trainer_of(job, config, items, _arguments(job, config, folder))
    fresh = adapters is not None
    same = job.reference is not None and job.reference.resolve() == job.init.resolve()
    reference = None if job.reference is None or (fresh and same) else load_model(job.reference)[0]
    named = {} if adapters is None else {"peft_config": adapters}
    trainer = made(model, reference, processing_class=tokenizer, callbacks=[_watch(config, progress)], **named)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    metrics = [_metrics(entry) for entry in trainer.state.log_history if "loss" in entry]
    if not metrics:
        raise StageError("TRL's trainer took no step: a batch needs more examples than there are")
    result = result_of(
        job,
        metrics,
        adapters=config.lora is not None and not config.lora.merge,
        examples=len(items),
        tokens=int(sum(m["tokens"] for m in metrics)),
        started=started,
    )
    save_policy(_to_save(trainer, config), tokenizer, job, dtype=stored, result=result)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _policy(directory: Path, config: Trl) -> tuple[Any, Any, torch.dtype]:
    """The policy in float32, the fresh adapters TRL is to put into it, and the type its weights are stored in."""
    lora = config.lora
    if lora is not None and not lora.merge and (directory / ADAPTER).is_file():
        wrapper, _, stored = load_adapter(directory, lora, keep_dtype=False)
        return wrapper, None, stored
    model, stored = load_model(directory)
    model.name_or_path = str(directory)  # what a kept adapter names as its base
    return model, None if lora is None else lora_config(lora), stored


def _items(table: Any, tokenizer: Any, config: Trl, model: Any) -> Sequence[Item]:
    context = context_of(model)
    asked = config.args.get("max_length") or context
    longest = "args.max_length" if asked < context else "the policy's context"
    items = encode(table, tokenizer, max_length=min(asked, context), longest=longest)
    check_items(items, config)
    return items


def _arguments(job: TrainJob, config: Trl, folder: Path) -> dict[str, Any]:
    """Settings of the trainer's config class: the user's, and Strop's."""
    device = pick_device()
    precision: Mapping[str, Any] = {"bf16": use_bfloat16(Train(), device)}
    if {"bf16", "fp16"} & set(config.args):
        precision = {}
    return {
        "save_total_limit": 2,
        "dataloader_pin_memory": device != "cpu",
        "disable_tqdm": True,
        **precision,
        **config.args,
        "output_dir": str(folder),
        "seed": derive(job.seed, "trl") % (1 << 32),
        "save_strategy": "steps" if "save_steps" in config.args else "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
    }


def _watch(config: Trl, progress: Progress) -> Any:
    """Reports steps, saves about once a minute, and stops at a loss that is not finite, before anything is saved."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        tokens, began, saved, cost = 0.0, time.monotonic(), time.monotonic(), 0.0

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            for name in ("loss", "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise StageError(
                        f"{name} is {logs[name]} at step {state.global_step}: lower args.learning_rate, or look at the "
                        "examples"
                    )
            self.tokens += logs["tokens"]
            progress(
                {
                    "step": state.global_step,
                    "steps": state.max_steps,
                    "loss": logs["loss"],
                    "tokens": self.tokens,
                    "tokens_per_s": self.tokens / max(time.monotonic() - self.began, 1e-9),
                }
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.monotonic()
            if args.save_strategy == "no" and now - self.saved >= max(SAVE_EVERY_S, self.cost / SAVE_SHARE):
                control.should_save, self.saved = True, now

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.monotonic()
            self.cost, self.saved = now - self.saved, now

    return Watch()


def _last_checkpoint(folder: Path) -> str | None:
    """TRL's newest checkpoint that is whole: its state is written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """A step of TRL's log: numbers that are finite, by Strop's names where it has one."""
    return {
        NAMES.get(name, name): value
        for name, value in entry.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _to_save(trainer: Any, config: Trl) -> Any:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora is None:
        return model
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    return model.merge_and_unload() if config.lora.merge else model
