"""Unbiased pass@k on held-out problems, with a bootstrap interval over problems, overall and by category.

Source: Chen et al. 2021, 2107.03374, eq. 1.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.plugin import Config, stage
from strop.core.statistics import bootstrap
from strop.core.statistics import pass_at_k as estimate
from strop.storage.tables import Metric, Problem, Rollout, Score


class PassAtK(Config):
    """Which k."""

    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 8)
    """Numbers of attempts to report."""
    categories: bool = True
    """Report each category too, as slice `heldout/<category>`."""


@stage("evaluate")
def pass_at_k(
    config: PassAtK, *, rollouts: list[Rollout], scores: list[Score], problems: dict[int, Problem], seed: int
) -> list[Metric]:
    """Metrics `pass@k`; a rollout passes when every verifier says so, and counts not at all where one failed to judge.

    Raises ValueError when no problem has k judged rollouts.
    """
    verdicts: dict[int, list[str]] = {}
    for score in scores:
        if score.subject_kind == "rollout" and score.verdict:
            verdicts.setdefault(score.subject_id, []).append(score.verdict)
    counts: dict[int, list[int]] = {}
    for rollout in rollouts:
        found = verdicts.get(rollout.rollout_id, ["error"])
        if "error" not in found:
            of = counts.setdefault(rollout.problem_id, [0, 0])
            of[0] += 1
            of[1] += all(verdict == "pass" for verdict in found)
    slices: dict[str, list[int]] = {"heldout": sorted(counts)}
    if config.categories:
        for problem_id in sorted(counts):
            category = problems[problem_id].category
            if category is not None:
                slices.setdefault(f"heldout/{category}", []).append(problem_id)
    return [
        metric
        for k in sorted(set(config.k))
        for name, members in sorted(slices.items())
        if (metric := _metric(k, name, [counts[i] for i in members], seed)) is not None
    ]


def _metric(k: int, name: str, counts: list[list[int]], seed: int) -> Metric | None:
    values = [estimate(n, correct, k) for n, correct in counts if n >= k]
    if not values and name == "heldout":
        most = max((n for n, _ in counts), default=0)
        raise ValueError(
            f"pass@{k} needs {k} judged rollouts of a problem, the most any has is {most}: raise heldout.n"
        )
    if not values:
        return None
    found = bootstrap(values, seed)
    return Metric(name=f"pass@{k}", slice=name, value=found.mean, n=found.n, ci_low=found.low, ci_high=found.high)
