"""P(True): the probability that the policy itself gives to "this answer is right", asked with two labelled options.

Source: Kadavath et al. 2022, 2207.05221, section 3.
Changed: the two labels' probabilities are divided by their sum; with `shown` > 0 the other samples shown are rollouts
of the same group, where the paper draws them afresh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import NonNegativeInt, field_validator

from strop.core.engine import Engine
from strop.core.plugin import Config, stage
from strop.plugins.verify._verdict import unfit, unknown
from strop.storage.tables import Problem, Rollout, Score

QUESTION = """\
Question: {problem}
{others}Proposed answer: {answer}
Is the proposed answer:
(A) True
(B) False
The proposed answer is: ("""


class PTrue(Config):
    """What the policy is asked."""

    question: str = QUESTION
    """Text with {problem}, {answer} and {others}, put into the chat template where the policy has one."""
    true: str = "A"
    """What the policy writes next where the answer is right; best one token of its tokenizer."""
    false: str = "B"
    """What it writes where the answer is wrong."""
    shown: NonNegativeInt = 0
    """How many other completions of the same prompt it is shown first; 5 in the paper."""

    @field_validator("question")
    @classmethod
    def _complete(cls, text: str) -> str:
        try:
            text.format(problem="", answer="", others="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"the question may have {{problem}}, {{answer}} and {{others}} only: {error}") from None
        if "{answer}" not in text:
            raise ValueError("the question must show the {answer}")
        return text


@stage("verify", requires=("score",))
def p_true(config: PTrue, *, rollouts: list[Rollout], problems: dict[int, Problem], engine: Engine) -> list[Score]:
    """One score a rollout between 0 and 1, in their order; no verdict, since it is no judgement of the reference."""
    scores = [unfit(rollout, allow_truncated=True) for rollout in rollouts]
    asked = [i for i, score in enumerate(scores) if score is None]
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group_id, []).append(rollout)
    prompts = [
        engine.render(_question(config, rollouts[i], problems[rollouts[i].problem_id], groups[rollouts[i].group_id]))
        for i in asked
    ]
    for i, found in zip(asked, _asked(engine, config, prompts), strict=True):
        rollout = rollouts[i]
        if isinstance(found, str):
            scores[i] = unknown(rollout, found)
        else:
            scores[i] = Score(subject_id=rollout.rollout_id, problem_id=rollout.problem_id, value=found)
    return [score for score in scores if score is not None]


def _question(config: PTrue, rollout: Rollout, problem: Problem, group: Sequence[Rollout]) -> str:
    others = [r.completion.strip() for r in group if r is not rollout and r.finish_reason != "error"][: config.shown]
    shown = "".join(f"Another answer: {text}\n" for text in others)
    return config.question.format(problem=problem.prompt, answer=rollout.completion.strip(), others=shown)


def _asked(engine: Engine, config: PTrue, prompts: Sequence[str]) -> list[float | str]:
    """The share of the first label, or why there is none."""
    pairs = [(prompt, label) for prompt in prompts for label in (config.true, config.false)]
    try:
        found = [sum(logps) for logps in engine.score(pairs)]
    except ValueError as error:
        if len(prompts) == 1:
            return [str(error)]
        return [answer for prompt in prompts for answer in _asked(engine, config, [prompt])]
    return [_share(found[i], found[i + 1]) for i in range(0, len(found), 2)]


def _share(true: float, false: float) -> float | str:
    """exp(true) / (exp(true) + exp(false))."""
    if not (math.isfinite(true) and math.isfinite(false)):
        return "neither label has a probability"
    return 1 / (1 + math.exp(min(false - true, 700.0)))
