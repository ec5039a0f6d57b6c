r"""Mathematical equality of the completion's answer and the reference: fractions, radicals, sets, intervals, equations.

Source: Math-Verify 0.9 (Hugging Face, 2025), with its own time-outs off. Those raise in threads, count a time-out as a
wrong answer, and cannot interrupt arithmetic on huge numbers; `timeout_s` does. An answer in `\boxed{}`, `<answer>` or
after `####` is read first, else whatever Math-Verify finds. Words are read as products of letters: use `answer` then.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from strop.core.plugin import PerRollout, stage
from strop.plugins.verify._answers import answer_tag, auto, boxed, hashes, marked
from strop.plugins.verify._verdict import failed, passed, unfit, unknown
from strop.storage.tables import Problem, Rollout, Score

_MOST_CHARACTERS = 2000
"""An extracted answer longer than this is no answer."""
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
"""Prose, which Math-Verify would read as a product of letters; LaTeX commands aside."""
_SHOWN = 500
"""Most characters of an answer or reason that are kept."""


class Math(PerRollout):
    """How long an item may take."""

    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """Seconds of processor time for one rollout, and six times as many of waiting; then the verdict is 'error'."""
    allow_truncated: bool = False
    """Judge completions cut off at `max_tokens` too; else they fail."""


@stage("verify", imports=["math_verify"])
def math(config: Math, *, rollout: Rollout, problem: Problem) -> Score:
    """Whether the two are equal; a reference that is no mathematics is an error."""
    if problem.reference is None:
        return unknown(rollout, "the problem has no reference to compare with")
    score = unfit(rollout, allow_truncated=config.allow_truncated)
    if score is not None:
        return score
    verdict, answer, reason = _judged(problem.reference, rollout.completion)
    if verdict == "pass":
        return passed(rollout, answer)
    return failed(rollout, reason or "", answer) if verdict == "fail" else unknown(rollout, reason or "")


@lru_cache(maxsize=512)  # the samples of one problem come together, and many are equal
def _judged(reference: str, completion: str) -> tuple[str, str | None, str | None]:
    """Verdict, answer and reason."""
    from math_verify import verify

    for noisy in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    gold = _parsed(f"\\boxed{{{marked(reference).strip('$')}}}") or _parsed(reference)
    if not gold:
        return "error", None, f"the reference {reference!r} is not mathematics that Math-Verify can read"
    answer = next((a for way in (boxed, answer_tag, hashes) if (a := way(completion)) is not None), None)
    if answer is not None:
        target = _parsed(f"\\boxed{{{answer.strip('$')}}}") if len(answer) <= _MOST_CHARACTERS else []
    else:
        target = _parsed(completion)
        answer = auto(completion)
        if not target and answer and len(answer) <= _MOST_CHARACTERS and not _WORD.search(answer):
            target = _parsed(f"${answer.strip('$')}$")
    if not target:
        return "fail", (answer or "")[:_SHOWN] or None, "no mathematics found in the completion"
    shown = str(target[-1])[:_SHOWN]
    if verify(gold, target, timeout_seconds=None, raise_on_error=True):
        return "pass", shown, None
    return "fail", shown, f"expected {marked(reference)[:_SHOWN]}, got {shown}"


def _parsed(text: str) -> list[object]:
    from math_verify import parse

    found: list[object] = parse(text, parsing_timeout=None, fallback_mode="no_fallback")
    return found
