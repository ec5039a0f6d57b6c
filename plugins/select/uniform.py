"""Problems drawn uniformly without replacement, with a share kept for those synthesized in the previous round.

Source: the default of every rejection-sampling loop, e.g. Zelikman et al. 2022, 2203.14465.
Drawn by problem key and not by id, so that runs of other names draw the same problems.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field, PositiveInt

from strop.core.plugin import Config, stage
from strop.core.problems import by_key
from strop.storage.tables import Plan, Problem


class Uniform(Config):
    """How many problems."""

    problems: PositiveInt
    """Problems a round; all of them where there are fewer."""
    new_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share kept for problems synthesized in the previous round, as many as there are."""


@stage("select")
def uniform(config: Uniform, *, problems: list[Problem], seed: int, round: int) -> list[Plan]:
    """Plan rows in order of problem key, which is the same in every run."""
    rng = random.Random(seed)
    ordered = by_key(problems)
    new = [p for p in ordered if p.round == round - 1 and p.origin != "task"]
    fresh = rng.sample(new, min(len(new), int(config.problems * config.new_share)))
    chosen = {p.problem_id for p in fresh}
    others = [p for p in ordered if p.problem_id not in chosen]
    rest = rng.sample(others, min(len(others), config.problems - len(fresh)))
    return [
        Plan(problem_id=p.problem_id, reason="new" if p.problem_id in chosen else "uniform")
        for p in by_key([*fresh, *rest])
    ]
