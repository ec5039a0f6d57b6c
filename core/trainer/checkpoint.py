"""What the trainer writes: its own checkpoint and the finished policy. Both appear whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from strop.core.trainer.job import TrainJob, TrainResult
from strop.core.trainer.policy import quiet
from strop.core.trainer.token_head import TokenHead, save_head
from strop.storage.durable import fsync
from strop.storage.errors import StageError

CHECKPOINT = "checkpoint.pt"
RESULT = "result.json"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".onnx")


def save_checkpoint(work: Path, state: dict[str, Any]) -> None:
    """Replace the trainer's checkpoint; a kill at any moment leaves the old one or the new one."""
    work.mkdir(parents=True, exist_ok=True)
    partial = work / f"{CHECKPOINT}.partial"
    with partial.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(work / CHECKPOINT)


def load_checkpoint(work: Path, key: str) -> dict[str, Any] | None:
    """The checkpoint of the job with this key; None when there is none, or it is another job's."""
    path = work / CHECKPOINT
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["key"] == key else None


def save_policy(
    model: Any,
    tokenizer: Any,
    job: TrainJob,
    *,
    dtype: torch.dtype,
    result: TrainResult,
    heads: Mapping[str, TokenHead] | None = None,
) -> None:
    """Write a Hugging Face directory beside `job.output`, then rename it there; `heads` by name beside the weights.

    Files of the starting policy that are not weights (tokenizer, chat template, model code) come along unchanged.
    """
    partial = job.output.with_name(f".{job.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with quiet():
            model.to(dtype=dtype).save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)
        written = {p.name for p in partial.iterdir()}
        if job.init.is_dir():
            for path in sorted(job.init.iterdir()):
                if path.is_file() and path.name not in written and carried(path.name, adapter=result.kind == "lora"):
                    shutil.copyfile(path, partial / path.name)
        else:
            tokenizer.save_pretrained(partial)
        for name, head in (heads or {}).items():
            save_head(head, partial, name)
        for path in sorted(p for p in partial.rglob("*") if p.is_file()):
            fsync(path)
        fsync(partial)
        write_result(job, result)
        partial.rename(job.output)
        fsync(job.output.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    (job.work / CHECKPOINT).unlink(missing_ok=True)


def carried(name: str, *, adapter: bool) -> bool:
    """Whether a file of the starting policy belongs to the new one too."""
    if name.startswith((".", "adapter_")) or name.endswith(WEIGHTS) or name == "README.md":
        return False
    return not (adapter and name in ("config.json", "generation_config.json"))


def write_result(job: TrainJob, result: TrainResult) -> None:
    """Keep the result with the job's key, for a caller that was killed before it heard of it."""
    job.work.mkdir(parents=True, exist_ok=True)
    partial = job.work / f"{RESULT}.partial"
    values = dataclasses.asdict(result) | {"output": str(result.output), "key": job.key()}
    partial.write_text(json.dumps(values))
    fsync(partial)
    partial.replace(job.work / RESULT)


def finished(job: TrainJob) -> TrainResult | None:
    """The result of this very job, when its output is already there.

    Raises StageError: an output that is another job's.
    """
    if not job.output.exists():
        return None
    path = job.work / RESULT
    values = json.loads(path.read_text()) if path.is_file() else {"key": None}
    if values.pop("key") != job.key():
        raise StageError(f"{job.output} exists and is not this job's: remove it, or name another output")
    return TrainResult(**values | {"output": job.output})
