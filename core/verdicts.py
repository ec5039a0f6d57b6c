"""One verdict for a rollout from all that was said of it, by the rule the pass rates use.

A rollout passes when every verifier that judged it says so; where one of them failed to judge, it is an error and
counts neither way. Graded scores without a verdict say nothing here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from strop.storage.errors import did_you_mean
from strop.storage.tables import Rollout, Score


def of_rollouts(scores: Iterable[Score], scorer: str | None = None) -> dict[int, list[Score]]:
    """Scores by rollout id, only those of `scorer` where it is named.

    Raises ValueError when there are scores and none of them is by that scorer.
    """
    found: dict[int, list[Score]] = defaultdict(list)
    seen: set[str] = set()
    for score in scores:
        if score.subject_kind == "rollout":
            seen.add(score.scorer)
            if scorer is None or score.scorer == scorer:
                found[score.subject_id].append(score)
    if scorer is not None and seen and scorer not in seen:
        raise ValueError(f"no scores by {scorer!r}{did_you_mean(scorer, seen)}")
    return dict(found)


def verdicts(scores: Iterable[Score], scorer: str | None = None) -> dict[int, str]:
    """'pass', 'fail' or 'error' by rollout id; rollouts nobody judged are absent."""
    found = {}
    for rollout_id, members in of_rollouts(scores, scorer).items():
        said = {score.verdict for score in members if score.verdict is not None}
        if said:
            found[rollout_id] = "error" if "error" in said else "pass" if said == {"pass"} else "fail"
    return found


def values(scores: Iterable[Score], scorer: str | None = None) -> dict[int, float]:
    """Mean value by rollout id; rollouts with an error, or without any value, are absent."""
    found = {}
    for rollout_id, members in of_rollouts(scores, scorer).items():
        known = [score.value for score in members if score.value is not None]
        if known and not any(score.verdict == "error" for score in members):
            found[rollout_id] = sum(known) / len(known)
    return found


def pending(scores: Iterable[Score], scorer: str | None = None) -> bool:
    """Whether a scorer says, with neither verdict nor value, that it cannot score yet."""
    found = of_rollouts(scores, scorer).values()
    return any(score.verdict is None and score.value is None for members in found for score in members)


def groups(rollouts: Iterable[Rollout]) -> list[list[Rollout]]:
    """Rollouts of one prompt under one policy, side by side in order of sample; groups in order of problem id."""
    found: dict[tuple[int, int, int], list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        found[rollout.problem_id, rollout.policy_id, rollout.group_id].append(rollout)
    return [sorted(found[key], key=lambda r: (r.sample_index, r.rollout_id)) for key in sorted(found)]
