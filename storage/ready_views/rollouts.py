"""Views of rollouts, what was said of them, and their trees."""

from __future__ import annotations

from strop.storage.ready_views.view import (
    DECIDED,
    JUDGED,
    OF_ROLLOUT,
    STANDING,
    UNAIDED,
    Query,
    ReadyView,
    columns,
    of_runs,
)

V_ROLLOUTS = ReadyView(
    "v_rollouts",
    "One row per run and rollout it used, with the verdict of all its verifiers and the word of its filters.",
    ("rollouts", "scores", "decisions", "stage_runs", "policies"),
    columns(
        run_id=("VARCHAR", "the run that used it; a rerun uses rollouts of another"),
        round=("INTEGER", "the round of that run"),
        rollout_id=("BIGINT", "the rollout"),
        problem_id=("BIGINT", "the problem it answers"),
        policy=("VARCHAR", "name of the policy that sampled it"),
        split=("VARCHAR", "'train' or 'heldout'"),
        sample_index=("INTEGER", "index within its group"),
        prompt=("VARCHAR", "the text the sampler saw"),
        completion=("VARCHAR", "the sampled text"),
        n_tokens=("INTEGER", "tokens sampled"),
        finish_reason=("VARCHAR", "'stop', 'length' or 'error'"),
        verdict=("VARCHAR", "'pass' when every verifier says so, 'fail', 'error' when one failed to judge; or null"),
        value=("DOUBLE", "mean of the values; null when a verifier failed to judge"),
        said=("VARCHAR[]", "each scorer with version and verdict"),
        kept=("BOOLEAN", "whether every filter kept it; null where none judged it"),
        reason=("VARCHAR", "why it was dropped"),
    ),
    f"""
SELECT r.run_id, r.round, r.rollout_id, r.problem_id, p.name AS policy, r.split, r.sample_index, r.prompt,
  r.completion, r.n_tokens, r.finish_reason, j.verdict, j.value, j.said, d.kept, d.reason
FROM {
        of_runs(
            "rollouts",
            "rollout_id, problem_id, policy_id, split, sample_index, prompt, completion, n_tokens, finish_reason",
        )
    } r
LEFT JOIN {JUDGED} j ON j.run_id = r.run_id AND j.round = r.round AND j.rollout_id = r.rollout_id
LEFT JOIN {DECIDED} d ON d.run_id = r.run_id AND d.round = r.round AND d.rollout_id = r.rollout_id
LEFT JOIN policies p ON p.policy_id = r.policy_id""",
    (
        Query(
            "What was dropped in round 1, and why?",
            "SELECT prompt, completion, verdict, reason FROM v_rollouts\n"
            "WHERE round = 1 AND NOT kept ORDER BY rollout_id LIMIT 5",
        ),
        Query(
            "Which correct completions are shortest?",
            "SELECT round, prompt, completion, n_tokens FROM v_rollouts\n"
            "WHERE verdict = 'pass' AND split = 'train' ORDER BY n_tokens, rollout_id LIMIT 5",
        ),
    ),
)

V_SCORES = ReadyView(
    "v_scores",
    "The scores that stand: every score but those that a later one replaces.",
    ("scores",),
    columns(
        score_id=("BIGINT", "id of the score"),
        run_id=("VARCHAR", "the run that scored"),
        round=("INTEGER", "the round that scored"),
        subject_kind=("VARCHAR", "'rollout', 'problem', 'step', 'token' or 'pair'"),
        subject_id=("BIGINT", "id of the subject"),
        step_index=("INTEGER", "index of the step or token"),
        problem_id=("BIGINT", "problem of the subject"),
        scorer=("VARCHAR", "label of the scorer"),
        scorer_version=("VARCHAR", "version it declares"),
        verdict=("VARCHAR", "'pass', 'fail', 'error' or null"),
        value=("DOUBLE", "the score"),
        answer=("VARCHAR", "the answer extracted"),
        reason=("VARCHAR", "why, in words"),
        supersedes=("BIGINT", "the score it replaces"),
    ),
    f"""
SELECT s.score_id, s.run_id, s.round, s.subject_kind, s.subject_id, s.step_index, s.problem_id, s.scorer,
  s.scorer_version, s.verdict, s.value, s.answer, s.reason, s.supersedes
FROM scores s {STANDING}""",
    (
        Query(
            "How do the versions of a scorer differ?",
            "SELECT scorer, scorer_version, verdict, count(*) AS n, avg(value) AS mean FROM v_scores\n"
            "GROUP BY ALL ORDER BY ALL",
        ),
    ),
)

V_PASS_RATES = ReadyView(
    "v_pass_rates",
    "One row per run, round, scorer, version and problem: how often it was solved without hints. Errors count nowhere.",
    ("rollouts", "scores", "problems", "stage_runs"),
    columns(
        run_id=("VARCHAR", "the run"),
        round=("INTEGER", "the round that scored the rollouts"),
        scorer=("VARCHAR", "label of the scorer"),
        scorer_version=("VARCHAR", "version it declares"),
        problem_id=("BIGINT", "the problem"),
        task=("VARCHAR", "its task"),
        split=("VARCHAR", "'train' or 'heldout'"),
        category=("VARCHAR", "the task's own grouping"),
        n=("BIGINT", "rollouts without a hint, with a verdict of pass or fail"),
        passed=("BIGINT", "those that passed"),
        rate=("DOUBLE", "passed / n"),
    ),
    f"""
SELECT s.run_id, s.round, s.scorer, s.scorer_version, s.problem_id, p.task, p.split, p.category,
  count(DISTINCT s.subject_id) AS n,
  count(DISTINCT s.subject_id) FILTER (s.verdict = 'pass') AS passed,
  passed / n AS rate
FROM {
        of_runs("scores", "score_id, subject_kind, subject_id, step_index, problem_id, scorer, scorer_version, verdict")
    } s
{STANDING}
{UNAIDED}
LEFT JOIN (
  SELECT problem_id, any_value(task) AS task, any_value(split) AS split, any_value(category) AS category
  FROM problems GROUP BY problem_id) p USING (problem_id)
WHERE {OF_ROLLOUT} AND s.verdict IN ('pass', 'fail')
GROUP BY ALL""",
    (
        Query(
            "Which categories are hard, and are they getting easier?",
            "SELECT run_id, category, round, avg(rate) AS rate, count(*) AS problems FROM v_pass_rates\n"
            "WHERE split = 'heldout' GROUP BY ALL ORDER BY ALL",
        ),
    ),
)

V_ERRORS = ReadyView(
    "v_errors",
    "What went wrong and was not redone: rollouts an engine could not finish, scores a verifier could not give.",
    ("rollouts", "scores"),
    columns(
        kind=("VARCHAR", "'rollout' or 'score'"),
        id=("BIGINT", "id of that row"),
        rollout_id=("BIGINT", "the rollout; null for a score of something else"),
        problem_id=("BIGINT", "its problem"),
        run_id=("VARCHAR", "the run"),
        round=("INTEGER", "the round"),
        who=("VARCHAR", "the engine, or the scorer with its version"),
        reason=("VARCHAR", "what it said"),
    ),
    f"""
SELECT 'rollout' AS kind, rollout_id AS id, rollout_id, problem_id, run_id, round, engine AS who, error AS reason
FROM rollouts WHERE finish_reason = 'error'
UNION ALL
SELECT 'score', s.score_id, CASE WHEN s.subject_kind IN ('rollout', 'step', 'token') THEN s.subject_id END,
  s.problem_id, s.run_id, s.round, s.scorer || ' ' || s.scorer_version, s.reason
FROM scores s {STANDING} WHERE s.verdict = 'error'""",
    (
        Query(
            "Who failed, how often, and with what words?",
            "SELECT run_id, round, who, reason, count(*) AS n FROM v_errors GROUP BY ALL ORDER BY n DESC LIMIT 10",
        ),
    ),
)

V_TREES = ReadyView(
    "v_trees",
    "The nodes of trees of rollouts: those that continue another, and those they begin with.",
    ("rollouts",),
    columns(
        root_id=("BIGINT", "rollout the tree begins with"),
        rollout_id=("BIGINT", "the node"),
        parent_rollout_id=("BIGINT", "rollout it continues; null for the root"),
        depth=("INTEGER", "steps from the root, which has 0"),
        branch_step=("INTEGER", "step of the parent after which it branches"),
        children=("BIGINT", "rollouts that continue it; 0 = a leaf"),
        run_id=("VARCHAR", "the run"),
        round=("INTEGER", "the round"),
        problem_id=("BIGINT", "the problem"),
        policy_id=("BIGINT", "the policy that sampled it"),
        completion=("VARCHAR", "the sampled text"),
        finish_reason=("VARCHAR", "'stop', 'length' or 'error'"),
    ),
    """
WITH RECURSIVE edges AS NOT MATERIALIZED (
  SELECT parent_rollout_id AS parent_id, rollout_id FROM rollouts WHERE parent_rollout_id IS NOT NULL),
nodes AS (
  SELECT DISTINCT parent_id AS root_id, parent_id AS rollout_id, 0 AS depth FROM edges
  WHERE parent_id NOT IN (SELECT rollout_id FROM edges)
  UNION ALL
  SELECT nodes.root_id, edges.rollout_id, nodes.depth + 1 FROM nodes JOIN edges ON edges.parent_id = nodes.rollout_id)
SELECT n.root_id, n.rollout_id, r.parent_rollout_id, n.depth, r.branch_step, coalesce(c.children, 0) AS children,
  r.run_id, r.round, r.problem_id, r.policy_id, r.completion, r.finish_reason
FROM (
  SELECT * FROM rollouts WHERE rollout_id IN (SELECT rollout_id FROM edges UNION SELECT parent_id FROM edges)) r
JOIN nodes n ON n.rollout_id = r.rollout_id
LEFT JOIN (SELECT parent_id, count(*) AS children FROM edges GROUP BY parent_id) c ON c.parent_id = n.rollout_id""",
    (
        Query(
            "How deep and how wide are the search trees?",
            "SELECT root_id, count(*) AS nodes, max(depth) AS depth, count(*) FILTER (children = 0) AS leaves\n"
            "FROM v_trees GROUP BY root_id ORDER BY nodes DESC LIMIT 5",
        ),
    ),
)

VIEWS = (V_ROLLOUTS, V_SCORES, V_PASS_RATES, V_ERRORS, V_TREES)
