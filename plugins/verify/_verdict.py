"""The three verdicts as rows, and what is said of a completion before anyone looks at its answer."""

from __future__ import annotations

from strop.storage.tables import Rollout, Score


def passed(rollout: Rollout, answer: str | None = None) -> Score:
    """Right."""
    return Score(subject_id=rollout.rollout_id, problem_id=rollout.problem_id, verdict="pass", value=1.0, answer=answer)


def failed(rollout: Rollout, reason: str, answer: str | None = None) -> Score:
    """Wrong, and why."""
    return Score(
        subject_id=rollout.rollout_id,
        problem_id=rollout.problem_id,
        verdict="fail",
        value=0.0,
        answer=answer,
        reason=reason,
    )


def unknown(rollout: Rollout, reason: str) -> Score:
    """Could not be judged: verdict 'error' and no value, so that statistics leave it out."""
    return Score(subject_id=rollout.rollout_id, problem_id=rollout.problem_id, verdict="error", reason=reason)


def unfit(rollout: Rollout, *, allow_truncated: bool) -> Score | None:
    """The verdict on a completion that never came, or was cut off; None where there is something to judge."""
    if rollout.finish_reason == "error":
        return unknown(rollout, f"the completion could not be sampled: {rollout.error or 'no reason given'}")
    if rollout.finish_reason == "length" and not allow_truncated:
        return failed(rollout, "cut off before it ended")
    return None
