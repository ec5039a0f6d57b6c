"""Which examples make which optimiser step, and their tensors: token-budget batches with hardly any padding.

An epoch's order comes from the seed alone. Shuffled chunks of several steps are sorted by length and cut into steps
of about equal target tokens; the steps are shuffled again, and each is cut into micro-batches by padded size. Groups
stay within one step. Sums over the whole step go into every micro-batch (see `objective.py`), so the cut into
micro-batches changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strop.core.seeds import derive
from strop.core.trainer.encode import Encoded, Item

if TYPE_CHECKING:
    from torch import Tensor

STEPS_PER_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: micro-batches of indices into the items, and the sums over all of them."""

    micro: tuple[tuple[int, ...], ...]
    tokens: float
    """Sum of the masks; of the chosen masks for pairs."""
    sequences: float
    """Sequences, or pairs."""
    targets: int
    """Target tokens, a pair's both sides together."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model reads for one micro-batch of one side, and which of its predictions are wanted.

    N target positions: those whose mask is not zero.
    """

    ids: Tensor
    """[B, L] right-padded; a causal model needs no attention mask for that."""
    row: Tensor
    """[N]"""
    position: Tensor
    """[N] the position that predicts the target."""
    slot: Tensor
    """[N] index of the target within its completion."""
    target: Tensor
    """[N]"""
    mask: Tensor
    """[B, T]"""


def plan(items: Sequence[Item], *, epochs: int, batch_tokens: int, micro_batch_tokens: int, seed: int) -> list[Step]:
    """The optimiser steps of all epochs. Depends on nothing but the arguments."""
    units = _units(items)
    targets = np.array([sum(items[i].targets for i in unit) for unit in units])
    lengths = np.array([max(items[i].length for i in unit) for unit in units])
    per_epoch = max(1, round(targets.sum() / batch_tokens))
    steps: list[Step] = []
    for epoch in range(epochs):
        rng = np.random.default_rng(derive(seed, "order", epoch))
        cuts: list[list[int]] = []
        order = rng.permutation(len(units))
        chunks = max(1, round(per_epoch / STEPS_PER_CHUNK))
        for number, chunk in enumerate(_even(order, targets, chunks)):
            by_length = chunk[np.argsort(lengths[chunk], kind="stable")]
            n = per_epoch * (number + 1) // chunks - per_epoch * number // chunks
            cuts += [[i for unit in piece for i in units[unit]] for piece in _even(by_length, targets, n)]
        steps += [_step(items, cuts[i], micro_batch_tokens) for i in rng.permutation(len(cuts))]
    return steps


def _units(items: Sequence[Item]) -> list[list[int]]:
    """Items that must share a step: the members of a group, else one alone."""
    groups: dict[object, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(("group", item.group_id) if item.group_id >= 0 else index, []).append(index)
    return list(groups.values())


def _even(order: np.ndarray, size: np.ndarray, n: int) -> list[np.ndarray]:
    """The order cut into at most n runs of about equal total size, none empty."""
    middle = np.cumsum(size[order]) - size[order] / 2
    bins = np.minimum((middle * n / size[order].sum()).astype(int), n - 1)
    return [run for run in np.split(order, np.flatnonzero(np.diff(bins)) + 1) if len(run)]


def _step(items: Sequence[Item], members: Sequence[int], micro_batch_tokens: int) -> Step:
    micro: list[tuple[int, ...]] = []
    current: list[int] = []
    for index in sorted(members, key=lambda i: (items[i].length, i)):
        width = items[index].length * len(items[index].sequences)
        if current and width * (len(current) + 1) > micro_batch_tokens:
            micro.append(tuple(current))
            current = []
        current.append(index)
    micro.append(tuple(current))
    return Step(
        micro=tuple(micro),
        tokens=float(sum(items[i].sequences[0].targets for i in members)),
        sequences=float(len(members)),
        targets=sum(items[i].targets for i in members),
    )


def inputs(sequences: Sequence[Encoded], device: str) -> Inputs:
    """The tensors of one micro-batch. The last token of a sequence is a target only, so it is not read."""
    import torch

    ids = np.zeros((len(sequences), max(len(s.ids) for s in sequences) - 1), dtype=np.int64)
    mask = np.zeros((len(sequences), max(len(s.mask) for s in sequences)), dtype=np.float32)
    rows, slots, targets, positions = [], [], [], []
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids) - 1] = (sequence.ids if sequence.read is None else sequence.read)[:-1]
        mask[row, : len(sequence.mask)] = sequence.mask
        slot = np.flatnonzero(sequence.mask)
        rows.append(np.full(len(slot), row))
        slots.append(slot)
        positions.append(slot + sequence.prompt_length - 1)
        targets.append(sequence.ids[slot + sequence.prompt_length])
    tensors = [torch.from_numpy(np.concatenate(part)) for part in (rows, positions, slots, targets)]
    row_t, position_t, slot_t, target_t = (t.to(device) for t in tensors)
    return Inputs(
        torch.from_numpy(ids).to(device), row_t, position_t, slot_t, target_t, torch.from_numpy(mask).to(device)
    )
