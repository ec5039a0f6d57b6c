"""What an objective requires of frozen policies, computed once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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
    old_values: Reference | None = None
    """Not log-probabilities but what the value head as training found it says of each target."""
    mismatched: Mismatched | None = None


def known(
    job: TrainJob,
    requires: frozenset[str],
    items: Sequence[Item],
    frozen: Callable[[str], Reader],
    *,
    max_length: int,
    micro_batch_tokens: int,
) -> Known:
    """`frozen` loads 'old', 'reference' or 'values' (old with its head), and only where something is missing."""

    def read(name: str, policy: str, wanted: Sequence[Item], what: Literal["logps", "values"] = "logps") -> Reference:
        return frozen_logps(job, name, wanted, lambda: frozen(policy), what=what, micro_batch_tokens=micro_batch_tokens)

    others = None
    if "mismatched" in requires:
        found = mismatched_items(items, max_length)
        present = [item for item in found if item is not None]
        others = mismatched(found, read("mismatched", "reference", present), micro_batch_tokens)
    return Known(
        read("old", "old", items) if "old" in requires else None,
        read("reference", "reference", items) if "reference" in requires else None,
        read("values", "values", items, what="values") if "values" in requires else None,
        others,
    )
