"""The policy in training looked at between its steps, without gradient and without dropout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from strop.core.trainer.batches import Step, inputs
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.logps import Reader, TokenLogps

Array = np.ndarray[Any, Any]


def step_entropy(items: Sequence[Item], step: Step, read: Reader) -> list[Array]:
    """[T] of the distribution at each target of the step's sequences, in the order of its micro-batches."""
    found: list[Array] = []
    for members in step.micro:
        sequences = [items[i].sequences[0] for i in members]
        with _looking(read):
            entropy = read(sequences).entropy
        assert entropy is not None, "the reader is one that gives entropies"
        found += _rows(entropy.cpu().numpy(), sequences)
    return found


def likeliest(sequences: Sequence[Encoded], read: Reader) -> list[Array]:
    """[T] the likeliest token at each target that the loss covers, after the true ones before it; 0 elsewhere."""
    batch = inputs(sequences, read.device, packed=read.packed)
    policy = read.policy
    assert isinstance(policy, TokenLogps)
    with (
        _looking(read),
        torch.autocast(read.device.split(":")[0], dtype=torch.bfloat16, enabled=read.bfloat16),
    ):
        best = torch.zeros_like(batch.mask, dtype=torch.int64).index_put((batch.row, batch.slot), policy.best(batch))
    return _rows(best.cpu().numpy(), sequences)


def _rows(values: Array, sequences: Sequence[Encoded]) -> list[Array]:
    return [row[: len(sequence.mask)] for row, sequence in zip(values, sequences, strict=True)]


@contextmanager
def _looking(read: Reader) -> Iterator[None]:
    read.policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        read.policy.train()
