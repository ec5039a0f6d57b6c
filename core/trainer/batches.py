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
from strop.core.units import units

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
    """What the model reads of B sequences, and which of its predictions are wanted.

    N target positions: those whose mask is not zero.
    """

    ids: Tensor
    """[B, L] right-padded, for which a causal model needs no attention mask; or packed one after the other, [1, L]."""
    positions: Tensor | None
    """[1, L] of packed sequences: each begins at 0 again, by which attention keeps them apart. None: not packed."""
    at: Tensor
    """[N] which of the ids, all rows one after the other, predicts the target."""
    row: Tensor
    """[N] the sequence it belongs to."""
    slot: Tensor
    """[N] index of the target within its completion."""
    target: Tensor
    """[N]"""
    mask: Tensor
    """[B, T]"""


def plan(
    items: Sequence[Item],
    *,
    epochs: int,
    batch_tokens: int,
    micro_batch_tokens: int,
    seed: int,
    packed: bool = False,
    in_turns: bool = False,
) -> list[Step]:
    """The optimiser steps of all epochs, in each the strata one after the other if `in_turns`.

    Depends on nothing but the arguments.
    """
    turns = sorted({item.stratum for item in items}) if in_turns else [-1]
    members = [[i for i, item in enumerate(items) if not in_turns or item.stratum == turn] for turn in turns]
    steps: list[Step] = []
    for epoch in range(epochs):
        for turn, chosen in enumerate(members):
            rng = np.random.default_rng(derive(seed, "order", epoch, *([turn] if turn else [])))
            cuts = _cuts(items, chosen, batch_tokens, rng)
            steps += [one_step(items, cut, micro_batch_tokens, packed) for cut in cuts]
    return steps


def _cuts(items: Sequence[Item], chosen: list[int], batch_tokens: int, rng: np.random.Generator) -> list[list[int]]:
    """The items of each step of one pass over the chosen ones."""
    groups = units(items[i].group_id if items[i].group_id >= 0 else None for i in chosen)
    together = [[chosen[i] for i in unit] for unit in groups]
    targets = np.array([sum(items[i].targets for i in unit) for unit in together])
    lengths = np.array([max(items[i].length for i in unit) for unit in together])
    total = max(1, round(targets.sum() / batch_tokens))
    cuts: list[list[int]] = []
    order = rng.permutation(len(together))
    chunks = max(1, round(total / STEPS_PER_CHUNK))
    for number, chunk in enumerate(_even(order, targets, chunks)):
        by_length = chunk[np.argsort(lengths[chunk], kind="stable")]
        n = total * (number + 1) // chunks - total * number // chunks
        cuts += [[i for unit in piece for i in together[unit]] for piece in _even(by_length, targets, n)]
    return [cuts[i] for i in rng.permutation(len(cuts))]


def _even(order: np.ndarray, size: np.ndarray, n: int) -> list[np.ndarray]:
    """The order cut into at most n runs of about equal total size, none empty."""
    middle = np.cumsum(size[order]) - size[order] / 2
    bins = np.minimum((middle * n / size[order].sum()).astype(int), n - 1)
    return [run for run in np.split(order, np.flatnonzero(np.diff(bins)) + 1) if len(run)]


def one_step(items: Sequence[Item], members: Sequence[int], micro_batch_tokens: int, packed: bool) -> Step:
    """Those items as one step, cut into micro-batches."""
    order = sorted(members, key=lambda i: (items[i].length, i))
    widths = [
        sum(len(s.ids) for s in items[i].sequences) if packed else items[i].length * len(items[i].sequences)
        for i in order
    ]
    return Step(
        micro=tuple(tuple(order[i] for i in run) for run in runs(widths, micro_batch_tokens, packed=packed)),
        tokens=float(sum(items[i].sequences[0].targets for i in members)),
        sequences=float(len(members)),
        targets=sum(items[i].targets for i in members),
    )


def runs(widths: Sequence[int], tokens: int, *, packed: bool) -> list[range]:
    """Rows of rising width, cut into micro-batches of up to that many tokens: the widest times all, or their sum."""
    if not widths:
        return []
    found: list[range] = []
    start, total = 0, 0
    for at, width in enumerate(widths):
        total = total + width if packed else width * (at + 1 - start)
        if at > start and total > tokens:
            found.append(range(start, at))
            start, total = at, width
    return [*found, range(start, len(widths))]


def inputs(sequences: Sequence[Encoded], device: str, *, packed: bool = False) -> Inputs:
    """The tensors of one micro-batch. The last token of a sequence is a target only, so it is not read."""
    import torch

    read = [len(s.ids) - 1 for s in sequences]
    starts = np.cumsum([0, *read[:-1]]) if packed else np.arange(len(sequences)) * max(read)
    ids = np.zeros(sum(read) if packed else len(sequences) * max(read), dtype=np.int64)
    mask = np.zeros((len(sequences), max(len(s.mask) for s in sequences)), dtype=np.float32)
    rows, slots, targets, at = [], [], [], []
    for row, (start, sequence) in enumerate(zip(starts, sequences, strict=True)):
        ids[start : start + len(sequence.ids) - 1] = (sequence.ids if sequence.read is None else sequence.read)[:-1]
        mask[row, : len(sequence.mask)] = sequence.mask
        slot = np.flatnonzero(sequence.mask)
        rows.append(np.full(len(slot), row))
        slots.append(slot)
        at.append(start + slot + sequence.prompt_length - 1)
        targets.append(sequence.ids[slot + sequence.prompt_length])

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Inputs(
        ids=tensor(ids.reshape(1 if packed else len(sequences), -1)),
        positions=tensor(np.concatenate([np.arange(n) for n in read])[None]) if packed else None,
        at=tensor(np.concatenate(at)),
        row=tensor(np.concatenate(rows)),
        slot=tensor(np.concatenate(slots)),
        target=tensor(np.concatenate(targets)),
        mask=tensor(mask),
    )
