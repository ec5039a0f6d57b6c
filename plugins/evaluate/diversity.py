"""Mean share of distinct completions in a problem's group: what self-training uses up while pass@1 rises.

Source: distinct-sample share, as Kirk et al. 2023, 2310.06452 measure per-input diversity, on whole completions in
place of n-grams and embeddings. It falls with the size of the group: compare policies at the same `heldout.n` only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.plugin import Config, stage
from strop.core.slices import metrics_by_slice
from strop.core.verdicts import groups
from strop.storage.tables import Metric, Problem, Rollout


class Diversity(Config):
    """How the interval is made."""

    resamples: Annotated[int, Field(ge=1000)] = 2000
    """Bootstrap resamples of the problems."""


@stage("evaluate")
def diversity(config: Diversity, *, rollouts: list[Rollout], problems: dict[int, Problem], seed: int) -> list[Metric]:
    """The metric `diversity` on the slice `heldout` and one for each category; problems with one completion say
    nothing and are left out. Raises ValueError when that leaves none."""
    shares: dict[int, float] = {}
    for group in groups(r for r in rollouts if r.finish_reason != "error"):
        if len(group) > 1:
            shares[group[0].problem_id] = len({r.completion for r in group}) / len(group)
    if rollouts and not shares:
        raise ValueError("diversity needs two completions of a problem, no problem has them: raise `heldout.n`")
    return metrics_by_slice("diversity", shares, problems, seed=seed, resamples=config.resamples)
