"""Pass when the answer extracted from the completion equals the reference.

Source: answer matching as every loop with known answers does it, e.g. Cobbe et al. 2021, 2110.14168 (`####`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Literal

from strop.core.plugin import Config, stage
from strop.storage.tables import Problem, Rollout, Score

BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
HASHES = re.compile(r"####[ \t]*(.+)")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
Extract = Literal["auto", "boxed", "answer_tag", "hashes", "last_equals", "last_line", "last_number", "whole"]


class Answer(Config):
    """Where the answer stands and how strict the comparison is."""

    extract: Extract = "auto"
    """Where the answer stands; auto = the first of boxed, answer_tag, hashes, last_equals, last_line that is there."""
    pattern: str | None = None
    """A regular expression with one group, used instead of `extract`; its last match counts."""
    ignore_case: bool = True
    """Compare text without case."""
    allow_truncated: bool = False
    """Judge completions cut off by length too; false = they fail."""


@stage("verify")
def answer(config: Answer, *, rollouts: list[Rollout], problems: dict[int, Problem]) -> list[Score]:
    """One verdict a rollout, value 1 or 0; 'error' without a reference or where the rollout itself failed."""
    return [_judge(config, rollout, problems[rollout.problem_id]) for rollout in rollouts]


def _judge(config: Answer, rollout: Rollout, problem: Problem) -> Score:
    if rollout.finish_reason == "error":
        return Score(subject_id=rollout.rollout_id, verdict="error", reason=f"the rollout failed: {rollout.error}")
    if problem.reference is None:
        return Score(subject_id=rollout.rollout_id, verdict="error", reason="the problem has no reference")
    found = extracted(config, rollout.completion)
    reason = None
    if rollout.finish_reason == "length" and not config.allow_truncated:
        passed, reason = False, "cut off by length"
    elif found is None:
        passed, reason = False, f"no answer found ({config.pattern or config.extract})"
    else:
        passed = same(found, problem.reference, ignore_case=config.ignore_case)
    verdict = "pass" if passed else "fail"
    return Score(subject_id=rollout.rollout_id, verdict=verdict, value=float(passed), answer=found, reason=reason)


def _last(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def find(text: str) -> str | None:
        found = pattern.findall(text)
        return found[-1] if found else None

    return find


FINDERS: dict[str, Callable[[str], str | None]] = {
    "boxed": _last(BOXED),
    "answer_tag": _last(TAG),
    "hashes": _last(HASHES),
    "last_equals": lambda text: text.rsplit("=", 1)[1] if "=" in text else None,
    "last_number": _last(NUMBER),
    "last_line": lambda text: next((line for line in reversed(text.splitlines()) if line.strip()), None),
    "whole": lambda text: text,
}
AUTO = ("boxed", "answer_tag", "hashes", "last_equals", "last_line")


def extracted(config: Answer, completion: str) -> str | None:
    """The answer as written, trimmed; None where there is none."""
    if config.pattern is not None:
        found = _last(re.compile(config.pattern))(completion)
    elif config.extract == "auto":
        found = next((value for name in AUTO if (value := FINDERS[name](completion)) is not None), None)
    else:
        found = FINDERS[config.extract](completion)
    return found.strip() or None if found is not None else None


def same(answer: str, reference: str, *, ignore_case: bool = True) -> bool:
    """Equal as numbers where both are numbers, else as text without outer and repeated white space."""
    left, right = _number(answer), _number(reference)
    if left is not None and right is not None:
        return left == right
    a, b = (" ".join(text.split()) for text in (answer, reference))
    return a.casefold() == b.casefold() if ignore_case else a == b


def _number(text: str) -> Decimal | None:
    text = text.strip().strip("$").rstrip(".").replace(",", "")
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
