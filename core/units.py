"""Examples that must stay together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


def units(groups: Iterable[Hashable | None]) -> list[list[int]]:
    """Indices of the members of each group, by where it begins; what is in no group (None) is alone."""
    found: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(("alone", index) if group is None else ("group", group), []).append(index)
    return list(found.values())
