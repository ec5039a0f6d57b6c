"""Trains a policy on a file of examples: one plain loop for every objective, full weights or adapters.

The same job gives the same weights, bit for bit, on CPU, also when it is killed and called again: order from the seed,
position, optimiser and random state from the trainer's own checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from strop.core.registry import find
from strop.core.seeds import derive
from strop.core.trainer.batches import Inputs, Step, plan
from strop.core.trainer.checkpoint import finished, load_checkpoint, save_checkpoint, save_policy
from strop.core.trainer.config import Train
from strop.core.trainer.encode import Item, encode
from strop.core.trainer.job import TrainJob, TrainResult, check_examples, name_ids, read_examples
from strop.core.trainer.logps import TokenLogps
from strop.core.trainer.loss import LogpsOf, Reference, group_rewards, micro_loss, reference_logps
from strop.core.trainer.objective import Loss
from strop.core.trainer.policy import Loaded, load_model, load_policy, pick_device, use_bfloat16
from strop.storage.errors import StageError

SAVE_EVERY_S = 60.0
SAVE_SHARE = 0.05
"""Without `save_every_steps`: a checkpoint a minute, but seldom enough to take at most this share of the time."""

Progress = Callable[[dict[str, float]], None]
"""Called after every optimiser step with step, steps, loss, tokens (so far) and tokens_per_s."""


def train(job: TrainJob, progress: Progress = lambda _: None) -> TrainResult:
    """Train `job` and write `job.output`; a finished job returns its result, a killed one goes on where it was.

    Raises StageError: examples that cannot be trained on, an output that is another job's, a loss that is not finite.
    """
    if (done := finished(job)) is not None:
        return done
    if job.output.exists():
        raise StageError(f"{job.output} exists and is not this job's: remove it, or name another output")
    started = time.monotonic()
    config = Train.model_validate(dict(job.train))
    with _threads(config.threads or job.threads):
        return _train(job, config, progress, started)


def _train(job: TrainJob, config: Train, progress: Progress, started: float) -> TrainResult:
    objective, kind, needs, requires = _objective(job)
    table = read_examples(job.examples)
    check_examples(table, kind=kind, needs=needs, who=job.objective)
    device = pick_device()
    torch.manual_seed(derive(job.seed, "torch"))
    loaded = load_policy(job.init, config, device=device)
    limit, longest = _limit(config, loaded.model)
    items = encode(table, loaded.tokenizer, max_length=limit, longest=longest)
    micro = config.micro_batch_tokens or (1024 if device == "cpu" else 8192)
    steps = plan(items, epochs=config.epochs, batch_tokens=config.batch_tokens, micro_batch_tokens=micro, seed=job.seed)
    reference = _reference(job, config, loaded, items, micro, device) if "reference" in requires else None
    metrics = _loop(job, config, loaded, items, steps, reference, objective, device, progress)
    tail = metrics[-max(1, math.ceil(len(metrics) / 10)) :]
    result = TrainResult(
        output=job.output,
        kind="lora" if config.lora is not None and not config.lora.merge else "full",
        steps=len(steps),
        examples=len(items),
        tokens=sum(step.targets for step in steps),
        loss=sum(m["loss"] for m in tail) / len(tail),
        seconds=time.monotonic() - started,
        metrics=metrics,
    )
    save_policy(_to_save(loaded, config), loaded.tokenizer, job, dtype=loaded.dtype, result=result)
    return result


def _loop(
    job: TrainJob,
    config: Train,
    loaded: Loaded,
    items: list[Item],
    steps: list[Step],
    reference: Reference | None,
    objective: Callable[[Any], Loss],
    device: str,
    progress: Progress,
) -> list[dict[str, float]]:
    """The optimiser steps, from the last checkpoint on. Returns the metrics of every step."""
    policy = TokenLogps(loaded.model)
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trained, config, device)
    logps_of = _forward(policy, use_bfloat16(config, device), device)
    groups = group_rewards(items)
    key = job.key()
    metrics = _restore(job, key, trained, optimizer)
    saved_at, save_s, tokens = time.monotonic(), 0.0, int(sum(m["tokens"] for m in metrics))
    begun, tokens_before = time.monotonic(), tokens
    for index in range(len(metrics), len(steps)):
        step, rate = steps[index], learning_rate(config, index, len(steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        total: dict[str, float] = {}
        values = []
        for members in step.micro:
            loss = micro_loss(
                members,
                items=items,
                step=step,
                reference=reference,
                groups=groups,
                logps_of=logps_of,
                objective=objective,
                device=device,
            )
            loss.value.backward()  # type: ignore[no-untyped-call]
            values.append(loss.value.detach())
            for name, value in loss.metrics.items():
                total[name] = total.get(name, 0.0) + value
        norm = float(torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm))
        losses = torch.stack(values).tolist()
        _check_finite(losses, norm, index, step, items)
        optimizer.step()
        tokens += step.targets
        metrics.append(
            {"step": index + 1, "loss": sum(losses), "lr": rate, "grad_norm": norm, "tokens": step.targets} | total
        )
        now = time.monotonic()
        if _due(config, index + 1, now - saved_at, save_s):
            _save(job, key, trained, optimizer, metrics)
            saved_at = time.monotonic()
            save_s = saved_at - now
        progress(
            {
                "step": index + 1,
                "steps": len(steps),
                "loss": sum(losses),
                "tokens": tokens,
                "tokens_per_s": (tokens - tokens_before) / max(now - begun, 1e-9),
            }
        )
    return metrics


def learning_rate(config: Train, index: int, steps: int) -> float:
    """The rate of step `index`, from 0: up over the warm-up, then down; zero would be reached after the last step."""
    warmup = round(config.warmup * steps)
    if index < warmup:
        return config.lr * (index + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = (index - warmup) / (steps - warmup)
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def _objective(job: TrainJob) -> tuple[Callable[[Any], Loss], str | None, list[str], frozenset[str]]:
    local = job.objective_origin.endswith(".py")
    plugin = find("objective", f"{job.objective_origin}:{job.objective}" if local else job.objective)
    config = plugin.configure(dict(job.objective_config))
    needs = ["behaviour_logps" if name == "logps" else name for name in sorted(plugin.mark.needs)]
    if "reference" in plugin.mark.requires and job.reference is None:
        raise StageError(f"objective {job.objective!r} requires a reference policy, and the job names none")
    return lambda batch: plugin.call(config, {"batch": batch}), plugin.mark.examples, needs, plugin.mark.requires


def _limit(config: Train, model: Any) -> tuple[int, str]:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    if config.max_length is not None and config.max_length <= context:
        return config.max_length, "train.max_length"
    return context, "the policy's context"


def _reference(
    job: TrainJob, config: Train, loaded: Loaded, items: list[Item], micro_batch_tokens: int, device: str
) -> Reference:
    """Log-probabilities under the reference, before the first step: adapters are still the identity then."""
    same = job.reference is not None and job.reference.resolve() == job.init.resolve()
    model = loaded.model if same else load_model(job.reference or job.init)[0].to(device)
    model.eval()
    logps_of = _forward(TokenLogps(model), use_bfloat16(config, device), device)
    found = reference_logps(items, logps_of, micro_batch_tokens=micro_batch_tokens, device=device)
    model.train()
    return found


def _forward(policy: TokenLogps, bfloat16: bool, device: str) -> LogpsOf:
    def logps_of(batch: Inputs) -> torch.Tensor:
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=bfloat16):
            logps: torch.Tensor = policy(batch.ids, batch.row, batch.position, batch.target)
        return logps

    return logps_of


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


def _to_save(loaded: Loaded, config: Train) -> Any:
    if loaded.wrapper is None or config.lora is None:
        return loaded.model
    return loaded.wrapper.merge_and_unload() if config.lora.merge else loaded.wrapper


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
