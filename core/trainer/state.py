"""What a training needs to go on where it was: parameters, optimiser, random numbers, the metrics so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.core.trainer.checkpoint import load_checkpoint, save_checkpoint
from strop.core.trainer.job import TrainJob
from strop.core.trainer.ranks import Ranks, like, whole

Parameters = dict[str, torch.nn.Parameter]


def restore(
    job: TrainJob, key: str, trained: Parameters, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> list[dict[str, float]]:
    """Put the last checkpoint's state in place; the metrics of the steps it has behind it."""
    state = load_checkpoint(job.work, key)
    if state is None:
        return []
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(like(state["parameters"][name], parameter))
    optimizer.load_state_dict(_optimizer_like(state["optimizer"], optimizer))
    if ranks.rank < len(state["rng"]):  # it may have been written by fewer processes
        cpu, cuda = state["rng"][ranks.rank]
        torch.set_rng_state(cpu)
        if torch.cuda.is_available() and cuda is not None:
            torch.cuda.set_rng_state(cuda)
    metrics: list[dict[str, float]] = state["metrics"]
    return metrics


def save(
    job: TrainJob,
    key: str,
    trained: Parameters,
    optimizer: torch.optim.Optimizer,
    metrics: list[dict[str, float]],
    ranks: Ranks,
) -> None:
    """Write a checkpoint; every process must call this, the first one writes."""
    parameters = {name: whole(p.detach()) for name, p in trained.items()}
    held = optimizer.state_dict()
    state = {i: {name: _plain(value) for name, value in values.items()} for i, values in held["state"].items()}
    random = ranks.gather((torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None))
    if ranks.first:
        save_checkpoint(
            job.work,
            {
                "key": key,
                "parameters": parameters,
                "optimizer": held | {"state": state},
                "rng": random,
                "metrics": metrics,
            },
        )
    ranks.gather(None)  # nobody goes on before it is there


def _plain(value: Any) -> Any:
    return whole(value) if isinstance(value, Tensor) else value


def _optimizer_like(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The stored state, sharded as the parameters are; they are numbered through the groups."""
    numbered = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    return state | {
        "state": {
            i: {
                name: like(value, numbered[i]) if isinstance(value, Tensor) and value.ndim else value
                for name, value in values.items()
            }
            for i, values in state["state"].items()
        }
    }
