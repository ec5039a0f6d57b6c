"""Whole sequences through the policy: log-probabilities of continuations, states, and logits of the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from strop.plugins.engines._decode import Forward
from strop.plugins.engines._memory import out_of_memory

_ELEMENTS = 1 << 25
"""Numbers computed at a time: 128 MB in float32."""
Ids = Sequence[Sequence[int]]


def score(model: Forward, prompts: Ids, tails: Ids, device: torch.device) -> list[list[float]]:
    """Log-probability in nats of every token of each tail, after its prompt and the tokens before it."""
    found: list[list[float]] = [[] for _ in prompts]
    whole = [[*prompt, *tail] for prompt, tail in zip(prompts, tails, strict=True)]

    def work(batch: list[int]) -> None:
        ids = _padded([whole[i] for i in batch], device)
        logits = model.logits(ids)
        logps = torch.log_softmax(logits[:, :-1].float(), -1).gather(2, ids[:, 1:, None])[..., 0].cpu()
        for i, row in zip(batch, logps.tolist(), strict=True):
            found[i] = row[len(prompts[i]) - 1 : len(whole[i]) - 1]

    _each([i for i in range(len(whole)) if tails[i]], whole, model.width, work)
    return found


def hidden(model: Forward, whole: Ids, device: torch.device) -> list[Tensor]:
    """[T, E] states of each sequence's tokens, in main memory."""
    found = [torch.empty(0)] * len(whole)

    def work(batch: list[int]) -> None:
        states = model.hidden(_padded([whole[i] for i in batch], device)).float().cpu()
        for i, row in zip(batch, states, strict=True):
            found[i] = row[: len(whole[i])].clone()

    _each(range(len(whole)), whole, model.width, work)
    return found


def next_logits(model: Forward, prompts: Ids, device: torch.device) -> Tensor:
    """[B, V] logits of the token after each prompt, in main memory."""
    found: dict[int, Tensor] = {}

    def work(batch: list[int]) -> None:
        ids = _padded([prompts[i] for i in batch], device)
        ends = torch.tensor([len(prompts[i]) - 1 for i in batch], device=device)
        logits = model.logits(ids, ends).float().cpu()
        found.update(zip(batch, logits, strict=True))

    _each(range(len(prompts)), prompts, model.width, work)
    return torch.stack([found[i] for i in range(len(prompts))]) if prompts else torch.empty(0, 0)


def _each(members: Sequence[int], whole: Ids, width: int, work: Callable[[list[int]], None]) -> None:
    """Have all worked on in batches of like length, the longest first, halved where memory runs out.

    `width`: the most numbers that a token makes at a time.
    """
    order, most = sorted(members, key=lambda i: len(whole[i])), len(members)
    while order:
        rows = max(1, min(most, _ELEMENTS // (len(whole[order[-1]]) * width)))
        try:
            work(order[-rows:])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or rows == 1:
                raise
            most = rows // 2
            continue
        del order[-rows:]


def _padded(sequences: Ids, device: torch.device) -> Tensor:
    """[B, T], padded on the right with 0."""
    longest = max(map(len, sequences))
    return torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=device)
