"""pass@k, the mean over k samples and majority@k of every problem, as one ready-made view.

Source: pass@k, Chen et al. 2021, 2107.03374, eq. 1; majority@k, Wang et al. 2022, 2203.11171. Answers are equal when
their texts are. The most frequent answers of the first k samples vote; where several tie, their verdicts are averaged,
and an answer judged both right and wrong counts as two. Samples without an answer have no vote; none at all is wrong.
"""

from __future__ import annotations

from strop.storage.ready_views.view import OF_ROLLOUT, STANDING, Query, ReadyView
from strop.storage.tables import Column

V_AT_K: ReadyView = ReadyView(
    "v_at_k",
    "One row per run, round, policy, scorer, problem and k (powers of two, and all n): pass@k, mean@k, majority@k.",
    ("scores", "rollouts", "problems"),
    (
        Column("run_id", "VARCHAR", "the run"),
        Column("round", "INTEGER", "the round that sampled the rollouts"),
        Column("policy_id", "BIGINT", "the policy that did"),
        Column("scorer", "VARCHAR", "label of the scorer"),
        Column("scorer_version", "VARCHAR", "its version"),
        Column("problem_id", "BIGINT", "the problem"),
        Column("task", "VARCHAR", "its task"),
        Column("split", "VARCHAR", "'train' or 'heldout'"),
        Column("category", "VARCHAR", "the task's own grouping"),
        Column("k", "BIGINT", "samples taken: the first k by index, for mean and majority"),
        Column("n", "BIGINT", "samples without a hint, with a verdict of pass or fail"),
        Column("pass_at_k", "DOUBLE", "chance that k of the n samples hold one that passes"),
        Column("mean_at_k", "DOUBLE", "share of the first k that passes"),
        Column(
            "majority_at_k",
            "DOUBLE",
            "whether the most frequent answer of the first k passes; null for a scorer without answers",
        ),
    ),
    f"""
WITH judged AS (
  SELECT r.run_id, r.round, r.policy_id, s.scorer, s.scorer_version, r.problem_id, s.answer,
    (s.verdict = 'pass')::INTEGER AS passed,
    row_number() OVER (same ORDER BY r.sample_index, r.rollout_id, s.score_id) AS place,
    count(*) OVER same AS n, sum(passed) OVER same AS c,
    bool_or(s.answer IS NOT NULL) OVER (PARTITION BY r.run_id, s.scorer, s.scorer_version) AS answers
  FROM scores s {STANDING}
  JOIN rollouts r ON r.rollout_id = s.subject_id
  WHERE {OF_ROLLOUT} AND s.verdict IN ('pass', 'fail') AND r.train_prompt IS NULL
  WINDOW same AS (PARTITION BY r.run_id, r.round, r.policy_id, s.scorer, s.scorer_version, r.problem_id)),
taken AS (
  SELECT j.*, least(p.power, n) AS k FROM judged j
  JOIN (SELECT 1 << range AS power FROM range(32)) p ON (p.power = 1 OR p.power // 2 < n) AND place <= p.power),
votes AS (
  SELECT run_id, round, policy_id, scorer, scorer_version, problem_id, k, answer, passed, count(*) AS votes
  FROM taken WHERE answer IS NOT NULL GROUP BY ALL),
majority AS (
  SELECT run_id, round, policy_id, scorer, scorer_version, problem_id, k, avg(passed) AS majority_at_k FROM (
    SELECT *, max(votes) OVER (PARTITION BY run_id, round, policy_id, scorer, scorer_version, problem_id, k) AS most
    FROM votes)
  WHERE votes = most GROUP BY ALL),
counted AS (
  SELECT run_id, round, policy_id, scorer, scorer_version, problem_id, k, n, c, answers, avg(passed) AS mean_at_k
  FROM taken GROUP BY ALL)
SELECT run_id, round, policy_id, scorer, scorer_version, problem_id, p.task, p.split, p.category, k, n,
  CASE WHEN n - c < k THEN 1.0
    ELSE 1 - exp(lgamma(n - c + 1) - lgamma(n - c - k + 1) + lgamma(n - k + 1) - lgamma(n + 1)) END AS pass_at_k,
  mean_at_k, CASE WHEN answers THEN coalesce(majority_at_k, 0.0) END AS majority_at_k
FROM counted LEFT JOIN majority USING (run_id, round, policy_id, scorer, scorer_version, problem_id, k)
LEFT JOIN problems p USING (problem_id)""",
    (
        Query(
            "What would the most frequent of eight answers score, beside one answer and the best of eight?",
            "SELECT round, avg(mean_at_k) AS mean, avg(majority_at_k) AS majority, avg(pass_at_k) AS pass\n"
            "FROM v_at_k WHERE split = 'heldout' AND k = 8 GROUP BY round ORDER BY round",
        ),
    ),
)

VIEWS = (V_AT_K,)
