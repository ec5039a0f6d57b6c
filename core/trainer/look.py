"""The policy in training looked at between its steps, without gradient and without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strop.core.trainer.batches import Step
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.logps import Reader, Seen

Array = np.ndarray[Any, Any]


def step_entropy(items: Sequence[Item], step: Step, read: Reader) -> list[Array]:
    """[T] of the distribution at each target of the step's sequences, in the order of its micro-batches."""
    return _seen(items, step, read, lambda seen: seen.entropy)


def step_logps(items: Sequence[Item], step: Step, read: Reader) -> list[Array]:
    """[T] log-probability of each target of the step's sequences, in the order of its micro-batches."""
    return _seen(items, step, read, lambda seen: seen.logps)


def _seen(items: Sequence[Item], step: Step, read: Reader, wanted: Callable[[Seen], Tensor | None]) -> list[Array]:
    """Each process reads its part, and all have the whole."""
    own: dict[int, list[Array]] = {}
    for number, _ in read.ranks.mine(len(step.micro)):
        sequences = [items[i].sequences[0] for i in step.micro[number]]
        with looking(read.policy):
            values = wanted(read(sequences))
        assert values is not None, "the reader is one that gives them"
        own[number] = _rows(values.cpu().numpy(), sequences)
    return [row for rows in read.ranks.collected(own) for row in rows]


def likeliest(sequences: Sequence[Encoded], read: Reader) -> list[Array]:
    """[T] the likeliest token at each target that the loss covers, after the true ones before it; 0 elsewhere."""
    with looking(read.policy):
        best = read.likeliest(sequences)
    return _rows(best.cpu().numpy(), sequences)


def _rows(values: Array, sequences: Sequence[Encoded]) -> list[Array]:
    return [row[: len(sequence.mask)] for row, sequence in zip(values, sequences, strict=True)]


@contextmanager
def looking(policy: nn.Module) -> Iterator[None]:
    """Read the policy and learn nothing from it."""
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train()
