"""Whether a step towards less loss on examples held back would raise or lower what the objective reports of this step.

The slope of a number m(theta) of the step along the gradient of the held-back loss V is <grad m, grad V>: how much of m
a small step of gradient descent on V takes away, and of V one on m. It is taken by a central difference, which needs no
second backward pass and works however the weights are spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from strop.core.trainer.batches import Step
from strop.core.trainer.look import looking
from strop.core.trainer.objective import Loss
from strop.core.trainer.ranks import Ranks, whole

LENGTH = 1e-2
"""Norm of the change of all weights together by which a slope is taken."""

LossOf = Callable[[int], Loss]
"""Of a micro-batch, by its number."""


def slopes(
    step: Step, loss: LossOf, watched: Step, utility: LossOf, trained: Mapping[str, nn.Parameter], policy: nn.Module,
    ranks: Ranks,
) -> dict[str, float]:  # fmt: skip
    """By `NAME_along` for each number NAME that the objective reports; the weights and gradients end as they began.

    `utility` is the loss of the examples held back, `loss` that of the step.
    """
    towards, norm = _gradient(watched, utility, trained, policy, ranks)
    if norm == 0:
        return {}
    start = {name: p.detach().clone() for name, p in trained.items()}
    seen = []
    with looking(policy):
        for side in (1, -1):
            for name, parameter in trained.items():
                parameter.copy_(start[name] + side * LENGTH / norm * towards[name])
            seen.append(_numbers(step, loss, ranks))
        for name, parameter in trained.items():
            parameter.copy_(start[name])
    ahead, behind = seen
    return {f"{name}_along": (ahead[name] - behind[name]) * norm / (2 * LENGTH) for name in ahead}


def _gradient(
    watched: Step, utility: LossOf, trained: Mapping[str, nn.Parameter], policy: nn.Module, ranks: Ranks
) -> tuple[dict[str, Tensor], float]:
    """Of the held-back loss, without dropout, and its norm."""
    policy.eval()
    for number, counts in ranks.mine(len(watched.micro)):
        value = utility(number).value
        (value if counts else value * 0.0).backward()  # type: ignore[no-untyped-call]
    policy.train()
    ranks.add_up(trained.values())
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()}
    for parameter in trained.values():
        parameter.grad = None
    return found, math.sqrt(sum(float(whole((grad.detach() ** 2).sum())) for grad in found.values()))


def _numbers(step: Step, loss: LossOf, ranks: Ranks) -> dict[str, float]:
    own = {number: loss(number).metrics for number, _ in ranks.mine(len(step.micro))}
    found: dict[str, float] = {}
    for part in ranks.collected(own):
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found
