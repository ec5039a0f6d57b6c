"""Up to a few distinct correct completions of each problem become SFT rows.

Source: Yuan et al. 2023, 2308.01825 (rejection sampling fine-tuning); the cap per problem as in Singh et al. 2023,
2312.06585 (ReST-EM, 10 there). Distinct means distinct text; the paper compares lists of equations.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace

from pydantic import PositiveInt

from strop.core.completions import distinct, sft_row
from strop.core.plugin import Config, stage
from strop.core.problems import by_key, key_of
from strop.core.seeds import derive
from strop.core.verdicts import verdicts
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class Rft(Config):
    """How many completions."""

    per_problem: PositiveInt = 4
    """Most completions of one problem."""


@stage("build")
def rft(
    config: Rft,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
    seed: int,
) -> list[Example]:
    """Rows in order of problem key. A filter's word counts where there is one, else the verdict: passes are used.

    Raises ValueError when there is neither: no completion is then known to be correct.
    """
    verdict = verdicts(scores)
    kept, weights = _decided(decisions)
    if rollouts and not verdict and not kept:
        raise ValueError("rft learns from correct completions, and no rollout has a verdict: put a `verify` before it")
    usable: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        wanted = kept.get(rollout.rollout_id, verdict.get(rollout.rollout_id) == "pass")
        if wanted and rollout.finish_reason != "error":
            usable[rollout.problem_id].append(rollout)
    found = []
    for problem in by_key(problems[i] for i in usable):
        for rollout in _choice(usable[problem.problem_id], config.per_problem, derive(seed, "rft", key_of(problem))):
            row = sft_row(rollout, rollout.completion)
            found.append(replace(row, weight=weights.get(rollout.rollout_id)))
    return found


def _choice(rollouts: list[Rollout], count: int, seed: int) -> list[Rollout]:
    found = distinct(sorted(rollouts, key=lambda r: (r.sample_index, r.rollout_id)))
    chosen = random.Random(seed).sample(range(len(found)), min(count, len(found)))
    return [found[i] for i in sorted(chosen)]


def _decided(decisions: list[Decision]) -> tuple[dict[int, bool], dict[int, float]]:
    """Kept when every filter keeps it, with the product of the weights they gave."""
    kept: dict[int, bool] = {}
    given: dict[int, list[float]] = defaultdict(list)
    for decision in decisions:
        if decision.subject_kind == "rollout":
            kept[decision.subject_id] = kept.get(decision.subject_id, True) and decision.keep
            if decision.weight is not None:
                given[decision.subject_id].append(decision.weight)
    return kept, {i: math.prod(sorted(members)) for i, members in given.items()}
