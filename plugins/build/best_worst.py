"""The highest-scored completion of a group against its lowest-scored one.

Source: Pang et al. 2024, 2404.19733 (iterative reasoning preference optimisation), which draws its pairs at random
among the correct and the wrong; here ties go to the earlier sample. Groups without contrast give no pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import NonNegativeFloat, PositiveInt

from strop.core.completions import distinct, dropped_by, loss_prompt
from strop.core.plugin import LATER, Config, stage
from strop.core.problems import key_of
from strop.core.verdicts import groups, values
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class BestWorst(Config):
    """Which pairs."""

    per_problem: PositiveInt = 1
    """Most pairs of a group: best and worst, second best and second worst, and so on."""
    min_margin: NonNegativeFloat = 0.0
    """Least difference of the scores; it is above 0 in any case."""
    scorer: str | None = None
    """Label of the verify stage to rank by; without it the mean over all of them."""
    margin_scorer: Annotated[str | None, LATER] = None
    """Label of the verify stage whose scores the pair's margin and reward are, e.g. an ensemble of reward models that
    tells how strong a preference is, or that it is none (below 0); without it the one that ranks."""


@stage("build")
def best_worst(
    config: BestWorst,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
) -> list[Example]:
    """Pairs in order of problem key. What a filter dropped may be rejected and is never chosen."""
    value = values(scores, config.scorer)
    told = value if config.margin_scorer is None else values(scores, config.margin_scorer)
    dropped = dropped_by(decisions)
    found = []
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        scored = [r for r in group if r.rollout_id in value and r.finish_reason != "error"]
        best = distinct(sorted((r for r in scored if r.rollout_id not in dropped), key=lambda r: -value[r.rollout_id]))
        worst = distinct(sorted(scored, key=lambda r: value[r.rollout_id]))
        for chosen, rejected in list(zip(best, worst, strict=False))[: config.per_problem]:
            margin = value[chosen.rollout_id] - value[rejected.rollout_id]
            if margin > 0 and margin >= config.min_margin and chosen.completion != rejected.completion:
                found.append(_pair(chosen, rejected, told))
    return found


def _pair(chosen: Rollout, rejected: Rollout, told: Mapping[int, float]) -> Example:
    high, low = told.get(chosen.rollout_id), told.get(rejected.rollout_id)
    return Example(
        kind="pair",
        problem_id=chosen.problem_id,
        prompt=loss_prompt(chosen),
        chosen=chosen.completion,
        rejected=rejected.completion,
        rollout_id=chosen.rollout_id,
        rejected_rollout_id=rejected.rollout_id,
        reward=high,
        margin=None if high is None or low is None else high - low,
    )
