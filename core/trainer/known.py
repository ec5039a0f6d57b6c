"""What an objective requires of frozen policies, computed once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from strop.core.trainer.encode import Item
from strop.core.trainer.job import TokenScorer, TrainJob
from strop.core.trainer.logps import Reader, Values
from strop.core.trainer.loss import Numbers, Reference
from strop.core.trainer.mismatched import Mismatched, mismatched, mismatched_items
from strop.core.trainer.reference import frozen_logps
from strop.core.trainer.token_score import token_reader


@dataclass(frozen=True, slots=True)
class Known:
    """Each is None unless the objective requires it."""

    old: Reference | None = None
    """The policy as training found it."""
    reference: Reference | None = None
    old_values: Reference | None = None
    """Not log-probabilities but what the value head as training found it says of each target."""
    mismatched: Mismatched | None = None
    behind: Mapping[str, Reference] = field(default_factory=dict)
    """The reference, the completions behind other prompts."""
    token_scores: Reference | None = None
    """What a reward model makes of each token, in place of log-probabilities."""


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
    """`frozen` loads 'old', 'reference', 'values' (old with its head), 'scorer' or 'scorer_reference', and only where
    something is missing. `behind` are the items once more, in their order, with other prompts."""
    theirs = cache(lambda: frozen("reference"))

    def read(name: str, load: Callable[[], Numbers], wanted: Sequence[Item] = items) -> Reference:
        return frozen_logps(job, name, wanted, load, micro_batch_tokens=micro_batch_tokens)

    def logps(policy: str) -> Reference:
        return read(policy, lambda: frozen(policy))

    def token_scores(scorer: TokenScorer) -> Reference:
        if scorer.reference is None:
            return read("token_scores", lambda: token_reader(frozen("scorer"), scorer.model))
        same = reference is not None and job.reference is not None and job.reference.samefile(scorer.reference)
        theirs = reference if same and reference is not None else logps("scorer_reference")
        pairs = zip(logps("scorer").logps, theirs.logps, strict=True)
        return Reference([(scorer.beta * (own - other),) for (own,), (other,) in pairs])

    others = None
    if "mismatched" in requires:
        found = mismatched_items(items, max_length)
        present = [item for item in found if item is not None]
        others = mismatched(found, read("mismatched", theirs, present), micro_batch_tokens)
    old = logps("old") if "old" in requires else None
    reference = read("reference", theirs) if "reference" in requires else None
    elsewhere = {name: read(f"behind-{name}", theirs, wanted) for name, wanted in behind.items()}
    theirs.cache_clear()
    values = read("values", lambda: Values(frozen("values"))) if "values" in requires else None
    scores = token_scores(job.scorer) if job.scorer is not None and "token_scores" in requires else None
    return Known(old, reference, values, others, elsewhere, scores)
