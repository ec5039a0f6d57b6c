r"""Mathematical equality of the completion's answer and the reference: fractions, radicals, sets, intervals, equations.

Source: Math-Verify 0.9 (Hugging Face, 2025), with its own time-outs off. Those raise in threads, count a time-out as a
wrong answer, and cannot interrupt arithmetic on huge numbers; here the judging is done in a child process that the
kernel ends when an item takes too long. An answer in `\boxed{}`, `<answer>` or after `####` is read first, else
whatever Math-Verify finds. Words are read as products of letters: for those use `answer`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.plugin import Config, stage
from strop.plugins.verify._math_judge import Judge
from strop.plugins.verify._verdict import failed, passed, unfit, unknown
from strop.storage.tables import Problem, Rollout, Score


class Math(Config):
    """How long an item may take."""

    timeout_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """Seconds of processor time for one completion, parsing included; after that the verdict is 'error'."""
    allow_truncated: bool = False
    """Judge completions cut off at `max_tokens` too; else they fail."""


@stage("verify")
def math(config: Math, *, rollouts: list[Rollout], problems: dict[int, Problem]) -> list[Score]:
    """One score a rollout, in their order. Equal completions of a problem are judged once.

    Raises PluginError when the child process cannot start (math-verify not installed).
    """
    known: dict[tuple[str, str], tuple[str, str | None, str | None]] = {}
    found = []
    with Judge(config.timeout_s) as judge:
        for rollout in rollouts:
            reference = problems[rollout.problem_id].reference
            if reference is None:
                found.append(unknown(rollout, "the problem has no reference to compare with"))
                continue
            score = unfit(rollout, allow_truncated=config.allow_truncated)
            if score is None:
                key = (reference, rollout.completion)
                if key not in known:
                    known[key] = judge(*key)
                score = _score(rollout, *known[key])
            found.append(score)
    return found


def _score(rollout: Rollout, verdict: str, answer: str | None, reason: str | None) -> Score:
    if verdict == "pass":
        return passed(rollout, answer)
    return failed(rollout, reason or "", answer) if verdict == "fail" else unknown(rollout, reason or "")
