"""Which samples are decoded together: prompts of one length, as many as memory has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Item:
    """Some samples of one request."""

    request: int
    samples: Sequence[int]
    prompt: Sequence[int]
    seeds: Sequence[int]
    limit: int
    """Most tokens each may have."""


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
            batches[-1].append(replace(item, samples=rest.samples[:taken], seeds=rest.seeds[:taken]))
            rest = replace(item, samples=rest.samples[taken:], seeds=rest.seeds[taken:])
            filled += taken
    return batches


def unfinished(items: Sequence[Item], missing: Callable[[int, int], bool]) -> list[Item]:
    """What is left of the items: the samples for which `missing(request, sample)`."""
    left = []
    for item in items:
        kept = [i for i, sample in enumerate(item.samples) if missing(item.request, sample)]
        if kept:
            samples, seeds = [item.samples[i] for i in kept], [item.seeds[i] for i in kept]
            left.append(replace(item, samples=samples, seeds=seeds))
    return left
