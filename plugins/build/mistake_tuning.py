"""Right and wrong completions alike become SFT rows, each behind a marker that says which it is.

The policy learns what a mistake looks like without learning to make it: sampled with the marker of right completions
at the end of its prompt, it gives the right kind.

Source: Tong et al. 2024, 2403.20046 ("Can LLMs learn from previous mistakes?", mistake tuning).
Changed: the loss covers the completion, there question and marker too. The texts of the markers are ours.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import PositiveInt

from strop.core.completions import sft_row
from strop.core.plugin import Config, stage
from strop.plugins.build._contrast import contrasts
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class MistakeTuning(Config):
    """The markers, and how many completions."""

    right: str = "\n[correct]\n"
    """Put behind the prompt of a right completion."""
    wrong: str = "\n[incorrect]\n"
    """Put behind the prompt of a wrong one."""
    per_problem: PositiveInt = 4
    """Most completions of either kind of one group: the earliest samples."""


@stage("build")
def mistake_tuning(
    config: MistakeTuning,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
) -> list[Example]:
    """Rows in order of problem key, right ones first. What a filter dropped is never shown as right.

    Raises ValueError when no rollout has a verdict.
    """
    found = []
    for contrast in contrasts(rollouts, scores, decisions, problems, "mistake_tuning"):
        for members, marker in ((contrast.good, config.right), (contrast.bad, config.wrong)):
            found += [_row(rollout, marker) for rollout in members[: config.per_problem]]
    return found


def _row(rollout: Rollout, marker: str) -> Example:
    row = sft_row(rollout, rollout.completion)
    return replace(row, prompt=row.prompt + marker)
