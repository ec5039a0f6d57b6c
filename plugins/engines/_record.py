"""What a batch has drawn so far, and which of its rows are still at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from strop.plugins.engines._draw import Drawn


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as numbers."""

    token_ids: list[int]
    logps: list[float]
    entropy: float
    self_certainty: float
    stopped: bool


@dataclass(slots=True)
class Rows:
    """The rows still in the batch, and where each belongs among all of its rows."""

    place: Tensor
    limit: Tensor
    done: Tensor
    stopped: Tensor
    length: Tensor
    recent: Tensor
    """[B, W] the last tokens, -1 before the first; W is 0 where no stop string is looked for."""

    def take(self, rows: Tensor) -> Rows:
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


class Record:
    """Everything drawn, [R, steps] for all rows of the batch, dropped ones included."""

    def __init__(self, rows: int, steps: int) -> None:
        self.tokens = torch.zeros(rows, steps, dtype=torch.long)
        self.numbers = torch.zeros(3, rows, steps)
        self.stopped = torch.zeros(rows, dtype=torch.bool)
        self.length = torch.zeros(rows, dtype=torch.long)
        self.pending: list[Drawn] = []
        self.steps = 0

    def add(self, drawn: Drawn) -> None:
        """One more step."""
        self.pending.append(drawn)
        self.steps += 1

    def flush(self, rows: Rows) -> None:
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

    def completions(self, places: Sequence[int]) -> list[Sampled]:
        """Of these rows."""
        rows = torch.tensor(places, dtype=torch.long)
        length, numbers = self.length[rows], self.numbers[:, rows, : self.steps]
        seen = torch.arange(self.steps) < length[:, None]
        entropies, certainties = ((numbers[1:] * seen).sum(-1) / length.clamp(min=1)).tolist()
        lengths, stopped = length.tolist(), self.stopped[rows].tolist()
        tokens, logps = self.tokens[rows, : self.steps].tolist(), numbers[0].tolist()
        return [
            Sampled(tokens[i][:n], logps[i][:n], entropies[i], certainties[i], stopped[i])
            for i, n in enumerate(lengths)
        ]
