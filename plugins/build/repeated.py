"""Right completions become SFT rows, some of them one of their own sentences over and over: for the objective `ditto`.

Source: Xu et al. 2022, 2206.02369 (DITTO).
Changed: the sentence comes from what the policy wrote and a verifier passed, there from the corpus; before the copies
stands the prompt, there the sentence before. Which rows and which sentences is decided by the seed and the text.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.completions import sft_row
from strop.core.plugin import Config, stage
from strop.core.problems import key_of
from strop.core.seeds import derive
from strop.plugins.build._contrast import contrasts
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class Repeated(Config):
    """What is repeated, and how often."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability with which a completion becomes a repetition."""
    copies: Annotated[int, Field(ge=3)] = 5
    """How often its sentence stands there."""
    separator: Annotated[str, Field(min_length=1)] = "\n"
    """Ends a sentence; it ends each copy, too."""
    per_problem: PositiveInt = 4
    """Most completions of one group: the earliest samples."""


@stage("build")
def repeated(
    config: Repeated,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
    seed: int,
) -> list[Example]:
    """Rows in order of problem key; their stratum is the number of copies, 0 where the text is as it came.

    Raises ValueError when no rollout has a verdict.
    """
    found = []
    for contrast in contrasts(rollouts, scores, decisions, problems, "repeated"):
        for rollout in contrast.good[: config.per_problem]:
            rng = random.Random(derive(seed, "repeated", key_of(problems[rollout.problem_id]), rollout.completion))
            sentences = [s for s in rollout.completion.split(config.separator) if s.strip()]
            again = rng.random() < config.share and bool(sentences)
            text = (rng.choice(sentences) + config.separator) * config.copies if again else rollout.completion
            row = sft_row(rollout, text)
            found.append(replace(row, stratum=config.copies, loss_spans=None) if again else replace(row, stratum=0))
    return found
