"""The optimiser steps: gradients of whole steps, AdamW, a learning-rate schedule, and checkpoints to continue from.

A plain loop rather than transformers' `Trainer`: a step here is a list of micro-batches whose number varies, its
checkpoint must survive a kill at any byte, and the first loss that is not finite must be named with its examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from strop.core.trainer.batches import Step
from strop.core.trainer.checkpoint import load_checkpoint, save_checkpoint
from strop.core.trainer.config import Train
from strop.core.trainer.corrupt import Corrupter
from strop.core.trainer.encode import Item
from strop.core.trainer.job import TrainJob, name_ids
from strop.core.trainer.known import Known
from strop.core.trainer.logps import Reader
from strop.core.trainer.look import step_entropy
from strop.core.trainer.loss import micro_loss, step_rows
from strop.core.trainer.objective import Loss, StepRows
from strop.core.trainer.score import ScoreReader
from strop.storage.errors import StageError

SAVE_EVERY_S = 60.0
SAVE_SHARE = 0.05
"""Without `save_every_steps`: a checkpoint a minute, but seldom enough to take at most this share of the time."""

Progress = Callable[[dict[str, float]], None]
"""Called after every optimiser step with step, steps, loss, tokens (so far) and tokens_per_s."""


@dataclass(frozen=True, slots=True)
class Work:
    """All the loop needs, in memory."""

    items: list[Item]
    steps: list[Step]
    trained: dict[str, torch.nn.Parameter]
    """The parameters in training, by name."""
    read: Reader | ScoreReader
    objective: Callable[[Any], Loss]
    known: Known
    corrupter: Corrupter | None
    """Where the objective's mark has `corrupts`."""
    entropy: Reader | None
    """Reads the entropy of a step before it is taken, when the mark requires 'step_entropy'."""


def run(job: TrainJob, config: Train, work: Work, progress: Progress) -> list[dict[str, float]]:
    """Take the optimiser steps, from the last checkpoint on. Returns the metrics of every step."""
    optimizer = _optimizer(work.trained, config, work.read.device)
    key = job.key()
    metrics = _restore(job, key, work.trained, optimizer)
    saved_at, save_s = time.monotonic(), 0.0
    tokens = before = sum(step.targets for step in work.steps[: len(metrics)])
    begun = time.monotonic()
    for index in range(len(metrics), len(work.steps)):
        step = work.steps[index]
        values = _optimise(config, work, optimizer, metrics)
        metrics.append({"step": index + 1} | values)
        tokens += step.targets
        now = time.monotonic()
        if _due(config, index + 1, now - saved_at, save_s):
            _save(job, key, work.trained, optimizer, metrics)
            saved_at = time.monotonic()
            save_s = saved_at - now
        progress(
            {
                "step": index + 1,
                "steps": len(work.steps),
                "loss": values["loss"],
                "tokens": tokens,
                "tokens_per_s": (tokens - before) / max(now - begun, 1e-9),
            }
        )
    return metrics


def _optimise(
    config: Train, work: Work, optimizer: torch.optim.Optimizer, before: list[dict[str, float]]
) -> dict[str, float]:
    """One optimiser step, after those `before` it.

    Returns its metrics; what is not finite raises StageError before it touches a weight.
    """
    index, history = len(before), tuple(before)
    step, rate = work.steps[index], learning_rate(config, index, len(work.steps))
    progress = index / len(work.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    whole = _whole(work, step)
    items = work.items if work.corrupter is None else work.corrupter.step(work.items, step, index, progress)
    losses, reported = [], dict[str, float]()
    for members in step.micro:
        loss = micro_loss(
            members,
            items=items,
            step=step,
            whole=whole,
            reference=work.known.reference,
            read=work.read,
            objective=work.objective,
            old=work.known.old,
            progress=progress,
            history=history,
        )
        loss.value.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.value.detach())
        for name, value in loss.metrics.items():
            reported[name] = reported.get(name, 0.0) + value
    norm = float(torch.nn.utils.clip_grad_norm_(work.trained.values(), config.max_grad_norm))
    values = torch.stack(losses).tolist()
    _check_finite(values, norm, index, step, work.items)
    optimizer.step()
    return {"loss": sum(values), "lr": rate, "grad_norm": norm, "tokens": step.targets} | reported


def _whole(work: Work, step: Step) -> tuple[StepRows, dict[int, int]] | None:
    """The step's sequences, and the row of each item among them; None for pairs and scores: they have no statistics."""
    members = [i for micro in step.micro for i in micro]
    if isinstance(work.read, ScoreReader) or len(work.items[members[0]].sequences) == 2:
        return None
    moved = None if work.known.mismatched is None else work.known.mismatched.moved(members, work.read)
    rows = step_rows(
        [work.items[i] for i in members],
        old=None if work.known.old is None else [work.known.old.logps[i][0] for i in members],
        reference=None if work.known.reference is None else [work.known.reference.logps[i][0] for i in members],
        mismatched=moved,
        entropy=None if work.entropy is None else step_entropy(work.items, step, work.entropy),
        device=work.read.device,
    )
    return rows, {i: row for row, i in enumerate(members)}


def learning_rate(config: Train, index: int, steps: int) -> float:
    """The rate of step `index`, from 0: up over the warm-up, then down; zero would be reached after the last step."""
    warmup = round(config.warmup * steps)
    if index < warmup:
        return config.lr * (index + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = (index - warmup) / (steps - warmup)
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer(trained: dict[str, torch.nn.Parameter], config: Train, device: str) -> torch.optim.AdamW:
    matrices = [p for p in trained.values() if p.ndim >= 2]
    others = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=device.startswith(("cpu", "cuda")))


def _restore(
    job: TrainJob, key: str, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    state = load_checkpoint(job.work, key)
    if state is None:
        return []
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["parameters"][name])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"])
    metrics: list[dict[str, float]] = state["metrics"]
    return metrics


def _save(
    job: TrainJob,
    key: str,
    trained: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    metrics: list[dict[str, float]],
) -> None:
    save_checkpoint(
        job.work,
        {
            "key": key,
            "parameters": {name: p.detach() for name, p in trained.items()},
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "metrics": metrics,
        },
    )


def _due(config: Train, step: int, since_s: float, save_s: float) -> bool:
    if config.save_every_steps is not None:
        return step % config.save_every_steps == 0
    return since_s >= max(SAVE_EVERY_S, save_s / SAVE_SHARE)


def _check_finite(losses: list[float], norm: float, index: int, step: Step, items: list[Item]) -> None:
    if math.isfinite(norm) and all(map(math.isfinite, losses)):
        return
    bad = [m for m, loss in zip(step.micro, losses, strict=True) if not math.isfinite(loss)] or list(step.micro)
    what = "the loss" if not all(map(math.isfinite, losses)) else "the gradient"
    raise StageError(
        f"{what} is not finite at step {index + 1} (loss {sum(losses)}, gradient norm {norm}; "
        f"example ids {name_ids([items[i].example_id for m in bad for i in m], 20)}): lower lr, or look at these"
    )
