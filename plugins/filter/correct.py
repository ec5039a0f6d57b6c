"""Keeps the rollouts that passed, and says of every other one why it was dropped.

Source: rejection sampling as in STaR, Zelikman et al. 2022, 2203.14465, algorithm 1, line 5.
"""

from __future__ import annotations

from typing import Literal

from strop.core.plugin import Config, stage
from strop.core.verdicts import of_rollouts, verdicts
from strop.storage.tables import Decision, Rollout, Score


class Correct(Config):
    """Whose verdict counts."""

    scorer: str | None = None
    """Label of the verify stage to go by; without it every one must pass."""
    truncated: Literal["drop", "keep"] = "drop"
    """What happens to completions cut off at `max_tokens` that pass all the same."""


@stage("filter")
def correct(config: Correct, *, rollouts: list[Rollout], scores: list[Score]) -> list[Decision]:
    """One decision a rollout, in their order."""
    by_rollout = of_rollouts(scores, config.scorer)
    verdict = verdicts(scores, config.scorer)
    found = []
    for rollout in rollouts:
        reason = _against(config, rollout, verdict.get(rollout.rollout_id), by_rollout.get(rollout.rollout_id, []))
        found.append(Decision(subject_id=rollout.rollout_id, keep=reason is None, reason=reason or "correct"))
    return found


def _against(config: Correct, rollout: Rollout, verdict: str | None, scores: list[Score]) -> str | None:
    if verdict is None:
        return "not judged"
    if verdict == "pass":
        return "truncated" if rollout.finish_reason == "length" and config.truncated == "drop" else None
    blame = next(s for s in sorted(scores, key=lambda s: s.scorer) if s.verdict == verdict)
    prefix = "could not be judged" if verdict == "error" else "wrong"
    return f"{prefix}: {blame.reason or blame.scorer}"
