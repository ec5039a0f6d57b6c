"""A good and a bad completion in one sequence, each behind words that say which it is: SFT on feedback in hindsight.

Of each pair four sequences: good, bad, bad then good, good then bad. The loss covers the completions, not the words
before them. Sampled with the words for a good one at the end of its prompt, the policy gives a good one.

Source: Liu et al. 2023, 2302.02676 (haoliuhl/chain-of-hindsight).
Changed: the words are ours, one set where the paper draws from many. Left out: the loss on pre-training text (.01),
and the random masking of past tokens, both of which are the trainer's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from strop.core.completions import loss_prompt
from strop.core.plugin import Config, stage
from strop.plugins.build._contrast import contrasts
from strop.storage.tables import Decision, Example, Problem, Rollout, Score

Form = Literal["good", "bad", "bad_good", "good_bad"]


class ChainOfHindsight(Config):
    """The words, and which sequences."""

    good: str = "\nA good answer: "
    """Put before a good completion."""
    bad: str = "\nA bad answer: "
    """Put before a bad one."""
    forms: Annotated[tuple[Form, ...], Field(min_length=1)] = ("good", "bad", "bad_good", "good_bad")
    """The sequences made of each pair."""
    per_problem: PositiveInt = 1
    """Most pairs of one group: the earliest samples of either kind."""


@stage("build")
def chain_of_hindsight(
    config: ChainOfHindsight,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
) -> list[Example]:
    """Rows in order of problem key; groups without contrast give none. What a filter dropped is never shown as good.

    Raises ValueError when no rollout has a verdict.
    """
    found = []
    for contrast in contrasts(rollouts, scores, decisions, problems, "chain_of_hindsight"):
        pairs = list(zip(contrast.good, contrast.bad, strict=False))[: config.per_problem]
        for good, bad in pairs:
            about = {"good": (config.good, good), "bad": (config.bad, bad)}
            found += [_row([about[name] for name in form.split("_")]) for form in config.forms]
    return found


def _row(parts: list[tuple[str, Rollout]]) -> Example:
    """The first part's words end the prompt; the loss covers what the policy wrote of each completion."""
    (words, first), *later = parts
    text, spans = first.completion, _spans(first, 0)
    for more, rollout in later:
        spans += _spans(rollout, len(text) + len(more))
        text += more + rollout.completion
    return Example(
        kind="sft",
        problem_id=first.problem_id,
        prompt=loss_prompt(first) + words,
        completion=text,
        rollout_id=first.rollout_id,
        sources=[rollout.rollout_id for _, rollout in later],
        loss_spans=spans,
    )


def _spans(rollout: Rollout, start: int) -> list[int]:
    return [start + at for at in rollout.loss_spans or [0, len(rollout.completion)]]
