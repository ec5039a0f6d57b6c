"""How often each problem was solved, from stored verdicts; an error counts neither way."""

from __future__ import annotations

from strop.core.plugin import PassRate
from strop.core.session import Session

PASS_RATES = """
WITH said AS ({scores}), sampled AS ({rollouts})
SELECT problem_id, count(*) AS n, count(*) FILTER (passed) AS passed, max(round) AS last_round
FROM (
    SELECT s.subject_id, any_value(r.problem_id) AS problem_id, any_value(r.round) AS round,
           bool_and(s.verdict = 'pass') AS passed
    FROM said s JOIN sampled r ON r.rollout_id = s.subject_id
    WHERE r.train_prompt IS NULL AND r.split = ? AND r.round <= ? AND s.round <= ?
      AND s.subject_kind = 'rollout' AND s.verdict IS NOT NULL AND (? = 0 OR r.policy_id = ?)
    GROUP BY s.subject_id
    HAVING bool_and(s.verdict <> 'error')
)
GROUP BY problem_id ORDER BY problem_id
"""
"""A rollout passes when every verifier that judged it says so. It is left out when one of them failed to judge, and
when the policy read more than the problem (`train_prompt`)."""


def pass_rates(session: Session, *, until: int, split: str = "train", policy_id: int = 0) -> dict[int, PassRate]:
    """Pass rates by problem id over rounds up to `until`, of one policy where its id is given."""
    scores, of_scores = session.rows_sql("scores")
    rollouts, of_rollouts = session.rows_sql("rollouts")
    params = [*of_scores, *of_rollouts, split, until, until, policy_id, policy_id]
    sql = PASS_RATES.format(scores=scores, rollouts=rollouts)
    return {row[0]: PassRate(*row) for row in session.lake.query(sql, params)}
