"""Asks a model about many at once, and finds out which of them it cannot take where it refuses all for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Answer = TypeVar("Answer")


def asked(ask: Callable[[Sequence[T]], Sequence[Answer]], of: Sequence[T]) -> list[Answer | str]:
    """An answer for each, or why there is none; `ask` raises ValueError for all where one does not fit."""
    try:
        return list(ask(of))
    except ValueError:
        found: list[Answer | str] = []
        for one in of:
            try:
                found += ask([one])
            except ValueError as error:
                found.append(str(error))
        return found
