"""Right completions become SFT rows, some of them with an empty thought: the policy learns that it may skip thinking.

Reinforcement afterwards finds out where thinking pays, which it cannot while every sample thinks.

Source: TON, Wang et al. 2025, 2505.16854 (kokolerk/TON).
Changed: which thoughts go is decided by the seed and the text of each completion. A completion without the marks, or
of which the policy wrote only parts, stays whole.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.completions import sft_row
from strop.core.plugin import Config, stage
from strop.core.problems import key_of
from strop.core.seeds import derive
from strop.plugins.build._contrast import contrasts
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class ThoughtDropout(Config):
    """The marks of a thought, and how many go."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability with which a thought is emptied."""
    begin: Annotated[str, Field(min_length=1)] = "<think>"
    """Begins a thought."""
    end: Annotated[str, Field(min_length=1)] = "</think>"
    """Ends it."""
    empty: str = "\n\n"
    """What stands between the marks of an empty one."""
    per_problem: PositiveInt = 4
    """Most completions of one group: the earliest samples."""


@stage("build")
def thought_dropout(
    config: ThoughtDropout,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
    seed: int,
) -> list[Example]:
    """Rows in order of problem key. Raises ValueError when no rollout has a verdict."""
    found = []
    for contrast in contrasts(rollouts, scores, decisions, problems, "thought_dropout"):
        for rollout in contrast.good[: config.per_problem]:
            drawn = derive(seed, "thought", key_of(problems[rollout.problem_id]), rollout.completion) / (1 << 62)
            text = _emptied(config, rollout) if drawn < config.share else rollout.completion
            found.append(sft_row(rollout, text))
    return found


def _emptied(config: ThoughtDropout, rollout: Rollout) -> str:
    """Without the text between the first begin and the first end after it."""
    before, begin, rest = rollout.completion.partition(config.begin)
    _, end, after = rest.partition(config.end)
    if not end or rollout.loss_spans is not None:
        return rollout.completion
    return before + begin + config.empty + end + after
