"""Every completion of a query behind every prompt of it: what tells a policy apart that heeds its prompt.

A query is several problems, its text with another set of principles each, whose `aux` has the same name of the query.
Of each problem the earliest completion is taken; n problems are n^2 examples, a group: that of problem j behind the
prompt of problem i has the stratum i * n + j. `train: sami` learns from them.

Source: Fränken et al. 2024, 2404.14313 (SAMI), where a query has a constitution and its opposite, and completions that
are alike or malformed are dropped.
Left out: writing principles, and their shuffled order; both are the problems'.
"""

from __future__ import annotations

import json
from collections import defaultdict

from strop.core.completions import dropped_by, loss_prompt
from strop.core.plugin import Config, stage
from strop.core.problems import key_of
from strop.core.verdicts import groups
from strop.storage.tables import Decision, Example, Problem, Rollout


class Crossed(Config):
    """What makes problems one query."""

    query: str = "query"
    """Key of the problem's `aux` with the name of its query."""


@stage("build")
def crossed(
    config: Crossed, *, rollouts: list[Rollout], decisions: list[Decision], problems: dict[int, Problem]
) -> list[Example]:
    """Groups in order of query. A completion that says what that of an earlier prompt says, or stands behind the same
    prompt, is left out, and so is a query with fewer than two left.

    Raises ValueError where a problem names no query.
    """
    dropped = dropped_by(decisions)
    queries: dict[str, list[Rollout]] = defaultdict(list)
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        query = _query(problems[group[0].problem_id], config.query)
        own = [r for r in group if r.rollout_id not in dropped and r.finish_reason != "error" and r.completion.strip()]
        taken = queries[query]
        for rollout in own[:1]:
            if all(rollout.completion != r.completion and loss_prompt(rollout) != loss_prompt(r) for r in taken):
                taken.append(rollout)
    return [e for query in sorted(queries) if len(queries[query]) > 1 for e in _matrix(queries[query])]


def _query(problem: Problem, key: str) -> str:
    found = json.loads(problem.aux or "{}").get(key)
    if found is None:
        raise ValueError(
            f"crossed needs `{key}` of every problem, the name of its query; "
            f"problem {problem.problem_id} ({problem.prompt[:40]!r}) has none"
        )
    return str(found)


def _matrix(members: list[Rollout]) -> list[Example]:
    n = len(members)
    return [
        Example(
            kind="group",
            problem_id=rollout.problem_id,
            prompt=loss_prompt(behind),
            completion=rollout.completion,
            rollout_id=rollout.rollout_id,
            group_id=members[0].group_id,
            loss_spans=rollout.loss_spans,
            stratum=i * n + j,
        )
        for i, behind in enumerate(members)
        for j, rollout in enumerate(members)
    ]
