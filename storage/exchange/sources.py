"""What an export selects from: the rows of one table, with what is known of them as further columns.

A condition of the user's (`--where`) may use every column here, so that `verdict = 'pass' AND level > 3` or
`rate BETWEEN 0.2 AND 0.8` needs no join.
"""

from __future__ import annotations

from dataclasses import dataclass

from strop.storage.errors import LakeError, did_you_mean
from strop.storage.tables import BY_NAME, columns

VERDICTS = """SELECT subject_id, CASE WHEN bool_or(verdict = 'error') THEN 'error'
    WHEN bool_and(verdict = 'pass') THEN 'pass' ELSE 'fail' END AS verdict
  FROM scores WHERE subject_kind = 'rollout' AND verdict IS NOT NULL AND {scorer}
    AND score_id NOT IN (SELECT supersedes FROM scores WHERE supersedes IS NOT NULL)
  GROUP BY subject_id"""
"""One verdict a rollout, by the rule of the pass rates: every verifier says pass; an error counts neither way."""

ROLLOUTS = """SELECT r.*, p.prompt AS problem, p.task, p.category, p.level, p.reference, p.messages, p.problem_key,
    p.aux, p.origin, q.name AS policy, c.text AS context, v.verdict
  FROM rollouts r LEFT JOIN problems p USING (problem_id) LEFT JOIN policies q USING (policy_id)
  LEFT JOIN contexts c ON c.context_id = r.context_id LEFT JOIN ({verdicts}) v ON v.subject_id = r.rollout_id"""
EXAMPLES = """SELECT e.*, p.prompt AS problem, p.task, p.category, p.level, p.reference, p.messages, p.problem_key,
    coalesce(p.split, 'train') AS split, c.text AS context, r.prompt AS sampled_prompt
  FROM examples e LEFT JOIN problems p USING (problem_id)
  LEFT JOIN (SELECT rollout_id, prompt, context_id FROM rollouts) r ON r.rollout_id = e.rollout_id
  LEFT JOIN contexts c ON c.context_id = r.context_id"""
PROBLEMS = """SELECT p.*, coalesce(m.n, 0) AS n, coalesce(m.passed, 0) AS passed, m.passed / nullif(m.n, 0) AS rate
  FROM problems p LEFT JOIN (
    SELECT r.problem_id, count(*) AS n, count(*) FILTER (v.verdict = 'pass') AS passed
    FROM rollouts r JOIN ({verdicts}) v ON v.subject_id = r.rollout_id
    WHERE v.verdict <> 'error' GROUP BY r.problem_id) m USING (problem_id)"""
SCORES = """SELECT s.*, r.split, q.name AS policy, p.task, p.category, p.level
  FROM scores s LEFT JOIN (SELECT rollout_id, split, policy_id FROM rollouts) r ON r.rollout_id = s.subject_id
  LEFT JOIN policies q USING (policy_id) LEFT JOIN problems p ON p.problem_id = s.problem_id"""


@dataclass(frozen=True, slots=True)
class Source:
    """What can be exported."""

    name: str
    table: str
    id: str
    sql: str
    """SELECT with the table's columns and further ones; `{verdicts}` and `{scorer}` are filled in."""
    doc: str
    fixed: str = "true"
    """Condition that always holds."""
    policy: str | None = None
    """Condition for `--policy`, with `{name}`; None where rows belong to no policy."""


_SAMPLED_BY = "policy = {name}"
_TRAINED_ON = """example_id IN (SELECT example_id FROM policy_examples JOIN policies USING (policy_id)
    WHERE policies.name = {name})"""

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "pairs",
            "examples",
            "example_id",
            EXAMPLES,
            "preference pairs that a `build` stage made",
            "kind = 'pair'",
            _TRAINED_ON,
        ),
        Source(
            "sft",
            "examples",
            "example_id",
            EXAMPLES,
            "examples for supervised fine-tuning that a `build` stage made",
            "kind = 'sft'",
            _TRAINED_ON,
        ),
        Source(
            "unpaired",
            "rollouts",
            "rollout_id",
            ROLLOUTS,
            "rollouts with a verdict as a yes-or-no label; errors and unjudged ones are left out",
            "verdict IN ('pass', 'fail')",
            _SAMPLED_BY,
        ),
        Source("prompts", "problems", "problem_id", PROBLEMS, "problems without completions", "status = 'active'"),
        Source("rollouts", "rollouts", "rollout_id", ROLLOUTS, "rollouts, right and wrong alike", policy=_SAMPLED_BY),
        Source("problems", "problems", "problem_id", PROBLEMS, "every problem, rejected ones included"),
        Source("scores", "scores", "score_id", SCORES, "what scorers said", policy=_SAMPLED_BY),
        Source("examples", "examples", "example_id", EXAMPLES, "examples of every kind", policy=_TRAINED_ON),
    )
}


def source(name: str) -> Source:
    """The source of that name. Raises LakeError."""
    if name not in SOURCES:
        raise LakeError(f"there is nothing called {name!r} to export{did_you_mean(name, [*SOURCES, 'policy'])}")
    return SOURCES[name]


def table_columns(found: Source) -> list[str]:
    """The columns of the source's own table."""
    return [column.name for column in columns(BY_NAME[found.table])]
