"""Named rewards and metrics as scores: their sum with a verdict, and each of them as a graded score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from strop.core.imports.lines import compact, value
from strop.core.imports.sample import Options
from strop.core.imports.turns import said
from strop.storage.tables import Score

THRESHOLD = 0.5
"""verifiers' own default for what counts as solved in its pass@k."""


def scores_of(
    rewards: Mapping[str, Any],
    metrics: Mapping[str, Any],
    failed: bool,
    errors: Sequence[Any],
    options: Options,
    total: float | None = None,
    threshold: float = THRESHOLD,
) -> Iterator[Score]:
    """The sum first, then its parts. A failed rollout has an error in place of a sum."""
    parts = {}
    for name, reward in rewards.items():
        given = reward if isinstance(reward, Mapping) or reward is None else {"score": reward}
        parts[name] = given and (value(given["score"], "DOUBLE", name), value(given.get("weight"), "DOUBLE", name))
    if failed:
        yield Score(subject_id=0, scorer="reward", scorer_version="import", verdict="error", reason=said(errors))
    elif parts or total is not None:
        known = [(s or 0.0) * (1.0 if w is None else w) for s, w in filter(None, parts.values())]
        sum_ = total if total is not None else sum(known)
        least = options.pass_threshold if options.pass_threshold is not None else threshold
        verdict = "pass" if sum_ >= least else "fail"
        yield Score(subject_id=0, scorer="reward", scorer_version="import", verdict=verdict, value=sum_)
    for name, part in parts.items():
        detail = compact({"weight": part[1]}) if part and part[1] not in (None, 1.0) else None
        yield _graded(f"reward.{name}", part[0] if part else None, detail)
    for name, metric in metrics.items():
        yield _graded(f"metric.{name}", value(metric, "DOUBLE", name))


def _graded(scorer: str, found: float | None, detail: str | None = None) -> Score:
    """A number without a verdict; one that was never computed is an error."""
    verdict = "error" if found is None else None
    reason = "scoring did not run" if found is None else None
    return Score(
        subject_id=0,
        scorer=scorer,
        scorer_version="import",
        verdict=verdict,
        value=found,
        reason=reason,
        detail=detail,
    )
