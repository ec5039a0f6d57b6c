"""Right and wrong completions of each group, side by side, for the builders that show a policy both."""

from __future__ import annotations

from dataclasses import dataclass

from strop.core.completions import distinct, dropped_by
from strop.core.problems import key_of
from strop.core.verdicts import groups, verdicts
from strop.storage.tables import Decision, Problem, Rollout, Score


@dataclass(frozen=True, slots=True)
class Contrast:
    """Distinct completions of one group, in order of sample."""

    good: list[Rollout]
    """A verifier passed them and no filter dropped them."""
    bad: list[Rollout]
    """A verifier failed them."""


def contrasts(
    rollouts: list[Rollout], scores: list[Score], decisions: list[Decision], problems: dict[int, Problem], who: str
) -> list[Contrast]:
    """One a group, in order of problem key. Raises ValueError when no rollout has a verdict."""
    verdict = verdicts(scores)
    if rollouts and not verdict:
        raise ValueError(f"{who} tells right from wrong, and no rollout has a verdict: put a `verify` before it")
    dropped = dropped_by(decisions)
    found = []
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        came = [r for r in group if r.finish_reason != "error"]
        good = [r for r in came if verdict.get(r.rollout_id) == "pass" and r.rollout_id not in dropped]
        found.append(Contrast(distinct(good), distinct([r for r in came if verdict.get(r.rollout_id) == "fail"])))
    return found
