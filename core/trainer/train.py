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
from strop.core.trainer.batches import Inputs, plan
from strop.core.trainer.checkpoint import finished, save_policy
from strop.core.trainer.config import Train
from strop.core.trainer.encode import encode
from strop.core.trainer.job import COLUMNS, TrainJob, TrainResult, check_examples, read_examples
from strop.core.trainer.known import known
from strop.core.trainer.logps import Predicted, TokenLogps
from strop.core.trainer.loop import Progress, Work, run
from strop.core.trainer.loss import LogpsOf
from strop.core.trainer.objective import Loss
from strop.core.trainer.policy import Loaded, load_model, load_policy, pick_device, use_bfloat16
from strop.core.trainer.score import ScoresOf, SequenceScores
from strop.storage.errors import PluginError, StageError, did_you_mean


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
    objective, kind, needs, requires, head = _objective(job)
    table = read_examples(job.examples)
    check_examples(table, kind=kind, needs=needs, who=job.objective)
    device = pick_device()
    torch.manual_seed(derive(job.seed, "torch"))
    loaded = load_policy(job.init, config, device=device, head=head)
    limit, longest = _limit(config, loaded.model)
    items = encode(table, loaded.tokenizer, max_length=limit, longest=longest)
    micro = config.micro_batch_tokens or (1024 if device == "cpu" else 8192)
    steps = plan(items, epochs=config.epochs, batch_tokens=config.batch_tokens, micro_batch_tokens=micro, seed=job.seed)
    stored = known(
        job,
        requires,
        items,
        lambda policy: _frozen(policy, job, config, loaded, device),
        max_length=limit,
        micro_batch_tokens=micro,
        device=device,
    )
    loaded.model.train()
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    bfloat16 = use_bfloat16(config, device)
    logps_of: LogpsOf | ScoresOf = (
        ScoresOf(SequenceScores(loaded.model), bfloat16)
        if head == "score"
        else _forward(TokenLogps(loaded.model, entropy="entropy" in requires), bfloat16, device)
    )
    work = Work(items, steps, trained, logps_of, objective, stored, device)
    metrics = run(job, config, work, progress)
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


def _objective(job: TrainJob) -> tuple[Callable[[Any], Loss], str | None, list[str], frozenset[str], str | None]:
    local = job.objective_origin.endswith(".py")
    plugin = find("objective", f"{job.objective_origin}:{job.objective}" if local else job.objective)
    config = plugin.configure(dict(job.objective_config))
    needs = ["behaviour_logps" if name == "logps" else name for name in sorted(plugin.mark.needs)]
    for name in needs:
        if name not in COLUMNS:
            raise PluginError(
                f"objective {job.objective!r} needs {name!r}: no such column{did_you_mean(name, COLUMNS)}"
            )
    requires = plugin.mark.required(config)
    if "reference" in requires and job.reference is None:
        raise StageError(f"objective {job.objective!r} requires a reference policy, and the job names none")
    mark = plugin.mark
    return lambda batch: plugin.call(config, {"batch": batch}), mark.examples, needs, requires, mark.head


def _limit(config: Train, model: Any) -> tuple[int, str]:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    if config.max_length is not None and config.max_length <= context:
        return config.max_length, "train.max_length"
    return context, "the policy's context"


def _frozen(policy: str, job: TrainJob, config: Train, loaded: Loaded, device: str) -> LogpsOf:
    """'old' or 'reference', before the first step: adapters are still the identity then."""
    directory = job.init if policy == "old" or job.reference is None else job.reference
    same = directory.resolve() == job.init.resolve()
    model = loaded.model if same else load_model(directory)[0].to(device)
    model.eval()
    return _forward(TokenLogps(model), use_bfloat16(config, device), device)


def _forward(policy: TokenLogps, bfloat16: bool, device: str) -> LogpsOf:
    def logps_of(batch: Inputs) -> Predicted:
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=bfloat16):
            predicted: Predicted = policy(batch.ids, batch.row, batch.position, batch.target)
        return predicted

    return logps_of


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
