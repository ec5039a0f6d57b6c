"""The policy in training looked at between its steps, without gradient and without dropout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from strop.core.trainer.batches import Step
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.logps import Reader

Array = np.ndarray[Any, Any]


def step_entropy(items: Sequence[Item], step: Step, read: Reader) -> list[Array]:
    """[T] of the distribution at each target of the step's sequences, in the order of its micro-batches."""
    found: list[Array] = []
    for members in step.micro:
        sequences = [items[i].sequences[0] for i in members]
        with looking(read.policy):
            entropy = read(sequences).entropy
        assert entropy is not None, "the reader is one that gives entropies"
        found += _rows(entropy.cpu().numpy(), sequences)
    return found


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
