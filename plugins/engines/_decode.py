"""The sampling loop: one prefill a prompt, its cache shared out to its samples, finished rows dropped as they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from strop.core.engine import Sampling
from strop.plugins.engines._draw import draw, exact, streams, uniforms
from strop.plugins.engines._plan import Item
from strop.plugins.engines._record import Record, Rows, Sampled

_BLOCK = 64
"""Steps whose random numbers are made at a time."""


class Cache(Protocol):
    """What a forward pass remembers of its rows."""

    def select(self, rows: Tensor) -> Self: ...


class Forward(Protocol):
    """`_llama.Llama` or `_modules.Modules`."""

    width: int
    """The most numbers that a token makes at a time."""

    def prefill(self, ids: Tensor, first: Tensor | None, room: int) -> tuple[Tensor, Any]: ...
    def step(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def logits(self, ids: Tensor, at: Tensor | None = None) -> Tensor: ...
    def hidden(self, ids: Tensor) -> Tensor: ...
    def load(self, model: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Ends:
    """How to tell that a stop string was just completed."""

    window: int
    """How many of the last tokens can hold one."""
    met: Callable[[list[list[int]]], list[bool]]
    """Whether the text of these tokens holds one, for each row."""


Emit = Callable[[list[int], list[Sampled]], None]


class UnsoundLogits(Exception):
    """Some logits are not numbers."""


def decode(
    model: Forward,
    batch: Sequence[Item],
    sampling: Sampling,
    *,
    final: Tensor,
    ends: Ends | None,
    emit: Emit,
    progress: Callable[[int], None],
) -> None:
    """Sample the whole batch; a token of `final` ends a completion.

    `emit(rows, completions)` hands over what is finished, its rows counted through the batch's items; all that is
    finished is handed over before an error leaves. `progress` is called with the tokens of the rest.
    Raises UnsoundLogits.
    """
    device = final.device
    ids, first = _padded([item.prompt for item in batch], device)
    counts = torch.tensor([len(item.seeds) for item in batch], device=device)
    limit = torch.tensor([item.limit for item in batch], device=device).repeat_interleave(counts)
    most = int(limit.max())
    logits, cache = model.prefill(ids, first, most)
    if int(counts.max()) > 1:
        shared = torch.arange(len(batch), device=device).repeat_interleave(counts)
        logits, cache = logits[shared], cache.select(shared)
    start = streams([seed for item in batch for seed in item.seeds])
    count = len(start)
    nothing = torch.zeros(count, dtype=torch.bool, device=device)
    recent = torch.full((count, ends.window if ends else 0), -1, device=device)
    rows = Rows(torch.arange(count, device=device), limit, nothing, nothing, limit, recent)
    record = Record(count, most)
    try:
        for step in range(most):
            if step % _BLOCK == 0:
                random = uniforms(start, step, _BLOCK).to(exact(device)).to(device)
            drawn = draw(logits, random[:, step % _BLOCK], sampling)
            record.add(drawn)
            _advance(rows, drawn.tokens, step + 1, final, ends)
            finished = int(rows.done.sum())
            if not bool(drawn.sound):
                raise UnsoundLogits
            if finished == len(rows.done):
                break
            tokens = drawn.tokens
            if 4 * finished >= len(rows.done):
                _hand_over(record, rows, emit)
                keep = (~rows.done).nonzero()[:, 0]
                rows, tokens = rows.take(keep), tokens[keep]
                cache = cache.select(keep)
                start, random = start[keep.cpu().numpy()], random[keep]
                progress((step + 1) * len(keep))
            logits = model.step(tokens, cache)
    finally:
        _hand_over(record, rows, emit)


def _advance(rows: Rows, tokens: Tensor, length: int, final: Tensor, ends: Ends | None) -> None:
    """Note which rows end with these tokens, the last of so many."""
    ended = (tokens[:, None] == final).any(-1) if len(final) != 1 else tokens == final
    if ends is not None:
        rows.recent = torch.cat([rows.recent[:, 1:], tokens[:, None]], 1)
        ended = ended | _stop_strings(rows, ends)
    ended = ended & ~rows.done
    rows.stopped = rows.stopped | ended
    rows.length = torch.where(ended, length, rows.length)
    rows.done = rows.done | ended | (rows.limit <= length)


def _hand_over(record: Record, rows: Rows, emit: Emit) -> None:
    record.flush(rows)
    places = rows.place[rows.done].tolist()
    if places:
        emit(places, record.completions(places))


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts as [P, T], padded on the left with 0, and the column each begins at; None when all begin at 0."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    first = [width - len(p) for p in prompts]
    return ids, torch.tensor(first, device=device) if any(first) else None


def _stop_strings(rows: Rows, ends: Ends) -> Tensor:
    """[B] whether the row's text now holds a stop string."""
    windows = [[token for token in row if token >= 0] for row in rows.recent.tolist()]
    return torch.tensor(ends.met(windows), device=rows.done.device)
