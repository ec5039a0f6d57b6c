"""Keeps the shortest correct completions of each problem: short reasoning that gets there is worth more.

Source: the shortest-of-n selection of Munkhbat et al. 2025, 2502.20122, for filtering.
"""

from __future__ import annotations

from collections import defaultdict

from pydantic import PositiveInt

from strop.core.plugin import Config, stage
from strop.core.verdicts import verdicts
from strop.storage.tables import Decision, Rollout, Score


class Shortest(Config):
    """How many."""

    per_problem: PositiveInt = 1
    """Completions of a problem that are kept; of equally short ones the earlier sample."""


@stage("filter", version="3")
def shortest(config: Shortest, *, rollouts: list[Rollout], scores: list[Score]) -> list[Decision]:
    """One decision a rollout, in their order."""
    verdict = verdicts(scores)
    right: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        if verdict.get(rollout.rollout_id) == "pass":
            right[rollout.problem_id].append(rollout)
    kept = set()
    for members in right.values():
        members.sort(key=lambda r: (len(r.completion), r.sample_index, r.rollout_id))
        kept |= {r.rollout_id for r in members[: config.per_problem]}
    return [
        Decision(
            subject_id=r.rollout_id,
            keep=r.rollout_id in kept,
            reason="shortest" if r.rollout_id in kept else "wrong or longer",
        )
        for r in rollouts
    ]
