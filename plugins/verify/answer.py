"""The final answer of the completion against the problem's reference, without any mathematics beyond numbers.

Source: the usual exact-match verifier of GSM8K (Cobbe et al. 2021, 2110.14168) and its successors.
Numbers are equal as numbers (`1,000`, `1000.0`; `1/2`, `.5`), all else as text. A reference that marks its own answer
(`#### 72`, a box) is reduced to it. For algebra, sets or intervals use `math`.
"""

from __future__ import annotations

from pydantic import field_validator

from strop.core.plugin import PerRollout, stage
from strop.plugins.verify._answers import extractor, marked, same
from strop.plugins.verify._verdict import failed, passed, unfit, unknown
from strop.storage.tables import Problem, Rollout, Score


class Answer(PerRollout):
    """Where the answer is, and what counts as equal."""

    extract: str = "auto"
    """auto (box, tag, ####, "answer is", last =, last line: the first that is there), boxed, answer_tag, hashes,
    last_equals, last_line, last_number, whole, or a regular expression with one group."""
    ignore_case: bool = True
    """Whether `Paris` equals `paris`."""
    allow_truncated: bool = False
    """Judge completions cut off at `max_tokens` too; else they fail."""

    @field_validator("extract")
    @classmethod
    def _known(cls, how: str) -> str:
        extractor(how)
        return how


@stage("verify")
def answer(config: Answer, *, rollout: Rollout, problem: Problem) -> Score:
    """The first answer there is decides; without one the completion fails."""
    if problem.reference is None:
        return unknown(rollout, "the problem has no reference to compare with")
    score = unfit(rollout, allow_truncated=config.allow_truncated)
    if score is not None:
        return score
    found = extractor(config.extract)(rollout.completion)
    if not found:
        return failed(rollout, f"no answer found (extract: {config.extract})")
    expected = marked(problem.reference)
    if same(found, expected, ignore_case=config.ignore_case):
        return passed(rollout, found)
    return failed(rollout, f"expected {expected}, got {found}", found)
