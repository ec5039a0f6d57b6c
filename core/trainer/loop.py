"""The optimiser steps: gradients of whole steps, AdamW, a learning-rate schedule, and checkpoints to continue from.

A plain loop rather than transformers' `Trainer`: a step here is a list of micro-batches whose number varies, its
checkpoint must survive a kill at any byte, and the first loss that is not finite must be named with its examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from strop.core.trainer.batches import Step
from strop.core.trainer.config import Train
from strop.core.trainer.corrupt import Corrupter
from strop.core.trainer.elastic import Elastic
from strop.core.trainer.encode import Item
from strop.core.trainer.foresight import slopes
from strop.core.trainer.job import TrainJob, name_ids
from strop.core.trainer.known import Known
from strop.core.trainer.logps import Reader
from strop.core.trainer.look import looking, step_entropy, step_logps
from strop.core.trainer.loss import micro_loss, step_rows
from strop.core.trainer.objective import Loss, StepRows
from strop.core.trainer.ranks import is_sharded, whole
from strop.core.trainer.score import ScoreReader
from strop.core.trainer.state import restore, save
from strop.core.trainer.token_score import TokenReader
from strop.core.trainer.tracking import Tracked
from strop.core.trainer.validation import Watch
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
    read: Reader | ScoreReader | TokenReader
    objective: Callable[[Any], Loss]
    known: Known
    corrupter: Corrupter | None
    """Where the objective's mark has `corrupts`."""
    entropy: Reader | None
    """Reads the entropy of a step before it is taken, when the mark requires 'step_entropy'."""
    logps: Reader | None
    """Likewise its log-probabilities, when the mark requires 'step_logps'."""
    watch: Watch | None
    """Where examples are held back."""
    track: Tracked
    """Shows a step's metrics elsewhere."""
    foresees: bool
    """Whether the objective's mark requires 'foresight'."""
    elastic: Elastic | None
    """Where something is to be kept."""


def run(job: TrainJob, config: Train, work: Work, progress: Progress) -> list[dict[str, float]]:
    """Take the optimiser steps, from the last checkpoint on. Returns the metrics of every step."""
    optimizer = _optimizer(work.trained, config, work.read.device)
    key = job.key()
    ranks = work.read.ranks
    metrics = restore(job, key, work.trained, optimizer, ranks, work.watch)
    saved_at, save_s = time.monotonic(), 0.0
    tokens = before = sum(step.targets for step in work.steps[: len(metrics)])
    begun = time.monotonic()
    for index in range(len(metrics), len(work.steps)):
        if work.watch is not None and work.watch.over:
            break
        step = work.steps[index]
        values = {"step": index + 1} | _optimise(config, work, optimizer, metrics)
        if work.watch is not None and ((index + 1) % work.watch.every == 0 or index + 1 == len(work.steps)):
            values["validation_loss"] = _look(work, work.watch.step, metrics)
            work.watch.saw(values["validation_loss"], work.trained)
        metrics.append(values)
        work.track(values)
        tokens += step.targets
        now = time.monotonic()
        if ranks.gather(_due(config, index + 1, now - saved_at, save_s))[0]:
            save(job, key, work.trained, optimizer, metrics, ranks, work.watch)
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
    if work.watch is not None:
        work.watch.put_back(work.trained)
    return metrics


def _look(work: Work, step: Step, before: list[dict[str, float]]) -> float:
    """The objective's loss on examples that are not trained on."""
    rows = _whole(work, step)
    ranks, losses = work.read.ranks, dict[int, float]()
    with looking(work.read.policy):
        for number, counts in ranks.mine(len(step.micro)):
            loss = _loss(work, work.items, step, number, rows, 1.0, before, held_back=True)
            if counts:
                losses[number] = float(loss.value)
    return float(sum(ranks.collected(losses)))


def _loss(
    work: Work,
    items: Sequence[Item] | Mapping[int, Item],
    step: Step,
    number: int,
    rows: tuple[StepRows, dict[int, int]] | None,
    progress: float,
    before: Sequence[Mapping[str, float]],
    held_back: bool = False,
) -> Loss:
    return micro_loss(
        step.micro[number],
        items=items,
        step=step,
        whole=rows,
        known=work.known,
        read=work.read,
        objective=work.objective,
        progress=progress,
        history=tuple(before),
        held_back=held_back,
    )


def _optimise(
    config: Train, work: Work, optimizer: torch.optim.Optimizer, before: list[dict[str, float]]
) -> dict[str, float]:
    """One optimiser step, after those `before` it.

    Returns its metrics; what is not finite raises StageError before it touches a weight.
    """
    index = len(before)
    step, rate = work.steps[index], learning_rate(config, index, len(work.steps))
    progress = index / len(work.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    rows = _whole(work, step)
    items = work.items if work.corrupter is None else work.corrupter.step(work.items, step, index, progress)
    ahead = _foreseen(work, items, step, rows, progress, before) if work.foresees else {}
    ranks, losses = work.read.ranks, dict[int, Loss]()
    for number, counts in ranks.mine(len(step.micro)):
        loss = _loss(work, items, step, number, rows, progress, before)
        (loss.value if counts else loss.value * 0.0).backward()  # type: ignore[no-untyped-call]
        if counts:
            losses[number] = Loss(loss.value.detach(), loss.metrics)
    ranks.add_up(work.trained.values())
    held = {} if work.elastic is None else {"ewc": work.elastic.pull()}
    norm = _clip(work.trained.values(), config.max_grad_norm)
    values = torch.stack([loss.value for loss in losses.values()]).tolist() if losses else []
    own = {number: (value, losses[number].metrics) for number, value in zip(losses, values, strict=True)}
    found = ranks.collected(own)
    _check_finite([value for value, _ in found], norm, index, step, work.items)
    optimizer.step()
    total = sum(value for value, _ in found) + sum(held.values())
    told = {"loss": total, "lr": rate, "grad_norm": norm, "tokens": step.targets}
    return told | held | ahead | _added(more for _, more in found)


def _foreseen(
    work: Work,
    items: Sequence[Item] | Mapping[int, Item],
    step: Step,
    rows: tuple[StepRows, dict[int, int]] | None,
    progress: float,
    before: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """How what the objective reports of the step goes along with its loss on the examples held back."""
    assert work.watch is not None
    watched = work.watch.step
    apart = _whole(work, watched)
    return slopes(
        step,
        lambda number: _loss(work, items, step, number, rows, progress, before),
        watched,
        lambda number: _loss(work, work.items, watched, number, apart, progress, before, held_back=True),
        work.trained,
        work.read.policy,
        work.read.ranks,
    )


def _clip(parameters: Collection[torch.nn.Parameter], most: float) -> float:
    """Scale the gradients down to that norm; the norm they had. Sharded ones and whole ones do not mix in one call."""
    kinds = [[p for p in parameters if is_sharded(p) is sharded] for sharded in (False, True)]
    if not kinds[1]:
        return float(torch.nn.utils.clip_grad_norm_(parameters, most))
    grads = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norm = torch.stack([whole(torch.nn.utils.get_total_norm(kind)) for kind in grads if kind]).norm()
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind, most, norm)
    return float(norm)


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found = dict[str, float]()
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found


def _whole(work: Work, step: Step) -> tuple[StepRows, dict[int, int]] | None:
    """The step's sequences, and the row of each item among them; None for pairs and scores: they have no statistics."""
    members = [i for micro in step.micro for i in micro]
    if not isinstance(work.read, Reader) or len(work.items[members[0]].sequences) == 2:
        return None
    moved = None if work.known.mismatched is None else work.known.mismatched.moved(members, work.read)
    scores = work.known.token_scores
    rows = step_rows(
        [work.items[i] for i in members],
        old=None if work.known.old is None else [work.known.old.logps[i][0] for i in members],
        reference=None if work.known.reference is None else [work.known.reference.logps[i][0] for i in members],
        old_values=None if work.known.old_values is None else [work.known.old_values.logps[i][0] for i in members],
        mismatched=moved,
        entropy=None if work.entropy is None else step_entropy(work.items, step, work.entropy),
        logps=None if work.logps is None else step_logps(work.items, step, work.logps),
        token_scores=None if scores is None else [scores.logps[i][0] for i in members],
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
    groups = [
        {
            "params": [p for p in trained.values() if (p.ndim >= 2) is matrices and is_sharded(p) is sharded],
            "weight_decay": config.weight_decay if matrices else 0.0,
        }
        for sharded in (False, True)
        for matrices in (True, False)
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=device.startswith(("cpu", "cuda")))


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
