"""What an objective requires of frozen policies, computed once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from strop.core.trainer.encode import Item
from strop.core.trainer.job import TrainJob
from strop.core.trainer.logps import Reader
from strop.core.trainer.loss import Reference
from strop.core.trainer.mismatched import Mismatched, mismatched, mismatched_items
from strop.core.trainer.reference import frozen_logps


@dataclass(frozen=True, slots=True)
class Known:
    """Each is None unless the objective requires it."""

    old: Reference | None = None
    """The policy as training found it."""
    reference: Reference | None = None
    mismatched: Mismatched | None = None
    behind: Mapping[str, Reference] = field(default_factory=dict)
    """The reference, the completions behind other prompts."""


def known(
    job: TrainJob,
    requires: frozenset[str],
    items: Sequence[Item],
    frozen: Callable[[str], Reader],
    behind: Mapping[str, Sequence[Item]],
    *,
    max_length: int,
    micro_batch_tokens: int,
) -> Known:
    """`frozen` loads 'old' or 'reference', and is called only where something is missing.

    `behind` are the items once more, in their order, with other prompts.
    """
    frozen = cache(frozen)

    def logps(name: str, policy: str, wanted: Sequence[Item]) -> Reference:
        return frozen_logps(job, name, wanted, lambda: frozen(policy), micro_batch_tokens=micro_batch_tokens)

    others = None
    if "mismatched" in requires:
        found = mismatched_items(items, max_length)
        present = [item for item in found if item is not None]
        others = mismatched(found, logps("mismatched", "reference", present), micro_batch_tokens)
    return Known(
        logps("old", "old", items) if "old" in requires else None,
        logps("reference", "reference", items) if "reference" in requires else None,
        others,
        {name: logps(f"behind-{name}", "reference", wanted) for name, wanted in behind.items()},
    )
