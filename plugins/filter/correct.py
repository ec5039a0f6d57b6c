"""Keep the completions that every verifier passed.

Source: the filter of rejection sampling, e.g. Zelikman et al. 2022, 2203.14465.
"""

from __future__ import annotations

from strop.core.plugin import Config, stage
from strop.storage.tables import Decision, Rollout, Score


class Correct(Config):
    """Whose verdict counts."""

    scorer: str | None = None
    """One verifier's label; null = all must pass."""
    truncated: bool = False
    """Keep completions that were cut off by length, where they passed."""


@stage("filter")
def correct(config: Correct, *, rollouts: list[Rollout], scores: list[Score]) -> list[Decision]:
    """One decision a rollout, with the reason it was dropped for."""
    verdicts: dict[int, list[Score]] = {}
    for score in scores:
        if score.subject_kind == "rollout" and score.verdict and config.scorer in (None, score.scorer):
            verdicts.setdefault(score.subject_id, []).append(score)
    decisions = []
    for rollout in rollouts:
        reason = _objection(config, rollout, verdicts.get(rollout.rollout_id, []))
        decisions.append(Decision(subject_id=rollout.rollout_id, keep=reason is None, reason=reason or "correct"))
    return decisions


def _objection(config: Correct, rollout: Rollout, scores: list[Score]) -> str | None:
    if not scores:
        return f"no verdict of {config.scorer}" if config.scorer else "no verdict"
    for verdict in ("error", "fail"):
        against = [score for score in scores if score.verdict == verdict]
        if against:
            return f"{against[0].scorer}: {verdict}" + (f" ({against[0].reason})" if against[0].reason else "")
    return "truncated" if rollout.finish_reason == "length" and not config.truncated else None
