"""The sampling loop: one prefill a prompt, its cache shared out to its samples, finished rows dropped as they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from strop.core.engine import Sampling
from strop.plugins.engines._draw import Drawn, draw, exact, streams, uniforms

_BLOCK = 64
"""Steps whose random numbers are made at a time."""


class Cache(Protocol):
    """What a forward pass remembers of its rows."""

    def select(self, rows: Tensor) -> Self: ...


class Forward(Protocol):
    """`_llama.Llama` or `_modules.Modules`."""

    def prefill(self, ids: Tensor, first: Tensor | None, room: int) -> tuple[Tensor, Any]: ...
    def step(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def logits(self, ids: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Item:
    """Some samples of one request."""

    request: int
    samples: range
    prompt: Sequence[int]
    seeds: Sequence[int]
    limit: int
    """Most tokens each may have."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as numbers."""

    token_ids: list[int]
    logps: list[float]
    entropy: float
    self_certainty: float
    stopped: bool


@dataclass(frozen=True, slots=True)
class Ends:
    """How to tell that a stop string was just completed."""

    window: int
    """How many of the last tokens can hold one."""
    met: Callable[[list[list[int]]], list[bool]]
    """Whether the text of these tokens holds one, for each row."""


class UnsoundLogits(Exception):
    """Some logits are not numbers."""


def plan(items: Sequence[Item], rows: int, tokens: int) -> list[list[Item]]:
    """Batches of at most `rows` samples and `tokens` prompt and completion tokens, prompts of one length together.

    Lengths mix only where a batch would stay less than half full.
    """
    batches: list[list[Item]] = []
    filled = room = 0
    for item in sorted(items, key=lambda item: (len(item.prompt), item.request)):
        most = max(1, min(rows, tokens // (len(item.prompt) + item.limit)))
        rest = item
        while rest.seeds:
            longer = bool(batches) and len(item.prompt) > len(batches[-1][0].prompt)
            if not batches or filled >= min(room, most) or (longer and 2 * filled >= room):
                batches.append([])
                filled, room = 0, most
            taken = min(len(rest.seeds), min(room, most) - filled)
            batches[-1].append(Item(item.request, rest.samples[:taken], item.prompt, rest.seeds[:taken], item.limit))
            rest = Item(item.request, rest.samples[taken:], item.prompt, rest.seeds[taken:], item.limit)
            filled += taken
    return batches


@dataclass(slots=True)
class _Rows:
    """The rows still in the batch, and where each belongs among all of its rows."""

    place: Tensor
    limit: Tensor
    done: Tensor
    stopped: Tensor
    length: Tensor
    recent: Tensor
    """[B, W] the last tokens, -1 before the first; W is 0 where no stop string is looked for."""

    def take(self, rows: Tensor) -> _Rows:
        return _Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


class _Record:
    """Everything drawn, [R, steps] for all rows of the batch, dropped ones included."""

    def __init__(self, rows: int, steps: int) -> None:
        self.tokens = torch.zeros(rows, steps, dtype=torch.long)
        self.numbers = torch.zeros(3, rows, steps)
        self.stopped = torch.zeros(rows, dtype=torch.bool)
        self.length = torch.zeros(rows, dtype=torch.long)
        self.pending: list[Drawn] = []
        self.steps = 0

    def flush(self, rows: _Rows) -> None:
        """Write what came since the last flush, before the rows change."""
        place = rows.place.cpu()
        self.stopped[place] = rows.stopped.cpu()
        self.length[place] = rows.length.cpu()
        if self.pending:
            span = slice(self.steps - len(self.pending), self.steps)
            self.tokens[place, span] = torch.stack([d.tokens for d in self.pending], 1).cpu()
            for index, name in enumerate(("logps", "entropy", "certainty")):
                self.numbers[index, place, span] = torch.stack([getattr(d, name) for d in self.pending], 1).cpu()
            self.pending.clear()

    def completions(self) -> list[Sampled]:
        """In the order of the rows."""
        seen = torch.arange(self.tokens.shape[1]) < self.length[:, None]
        means = (self.numbers[1:] * seen).sum(-1) / self.length.clamp(min=1)
        entropies, certainties = means.tolist()
        lengths, stopped = self.length.tolist(), self.stopped.tolist()
        tokens, logps = self.tokens.tolist(), self.numbers[0].tolist()
        return [
            Sampled(tokens[i][:n], logps[i][:n], entropies[i], certainties[i], stopped[i])
            for i, n in enumerate(lengths)
        ]


def decode(
    model: Forward,
    batch: Sequence[Item],
    sampling: Sampling,
    *,
    final: Tensor,
    ends: Ends | None,
    progress: Callable[[int, int], None],
) -> list[Sampled]:
    """Completions of every sample of the batch, item by item; a token of `final` ends one.

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
    rows = _Rows(torch.arange(count, device=device), limit, nothing, nothing, limit, recent)
    record = _Record(count, most)
    dropped = 0
    for step in range(most):
        if step % _BLOCK == 0:
            random = uniforms(start, step, _BLOCK).to(exact(device)).to(device)
        drawn = draw(logits, random[:, step % _BLOCK], sampling)
        record.pending.append(drawn)
        record.steps += 1
        ended = (drawn.tokens[:, None] == final).any(-1) if len(final) != 1 else drawn.tokens == final
        if ends is not None:
            rows.recent = torch.cat([rows.recent[:, 1:], drawn.tokens[:, None]], 1)
            ended = ended | _stop_strings(rows, ends)
        ended = ended & ~rows.done
        rows.stopped = rows.stopped | ended
        rows.length = torch.where(ended, step + 1, rows.length)
        rows.done = rows.done | ended | (rows.limit <= step + 1)
        finished = int(rows.done.sum())
        live = len(rows.done) - finished
        if live == 0:
            break
        tokens = drawn.tokens
        if 4 * finished >= len(rows.done):
            keep = (~rows.done).nonzero()[:, 0]
            record.flush(rows)
            dropped += finished
            rows, cache, tokens = rows.take(keep), cache.select(keep), tokens[keep]
            start, random = start[keep.cpu().numpy()], random[keep]
            progress(dropped, int(record.length.sum()))
        if not bool(drawn.sound):
            raise UnsoundLogits
        logits = model.step(tokens, cache)
    record.flush(rows)
    if not bool(drawn.sound):
        raise UnsoundLogits
    return record.completions()


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts as [P, T], padded on the left with 0, and the column each begins at; None when all begin at 0."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    first = [width - len(p) for p in prompts]
    return ids, torch.tensor(first, device=device) if any(first) else None


def _stop_strings(rows: _Rows, ends: Ends) -> Tensor:
    """[B] whether the row's text now holds a stop string."""
    windows = [[token for token in row if token >= 0] for row in rows.recent.tolist()]
    return torch.tensor(ends.met(windows), device=rows.done.device)
