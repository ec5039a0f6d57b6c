"""Views of what policies were trained on."""

from __future__ import annotations

from strop.storage.ready_views.view import (
    OF_ROLLOUT,
    STANDING,
    VALUE,
    VERDICT,
    Query,
    ReadyView,
    columns,
    of_runs,
)

_SCORES = of_runs("scores", "score_id, subject_kind, subject_id, step_index, scorer, scorer_version, verdict, value")


def _said(run: str, rollout: str) -> str:
    """What the scorers of a run said of a rollout, in one row.

    Lateral, so that the scores of the wanted examples alone are looked at, whatever the query filters by.
    """
    return f"""LATERAL (
  SELECT {VERDICT} AS verdict, {VALUE} AS value,
    list(s.scorer || ' ' || s.scorer_version || ': ' || coalesce(s.verdict, s.value::VARCHAR, 'nothing')
      ORDER BY s.scorer, s.scorer_version, s.score_id) AS said
  FROM {_SCORES} s {STANDING}
  WHERE {OF_ROLLOUT} AND s.run_id = {run} AND s.subject_id = {rollout})"""


V_PAIRS = ReadyView(
    "v_pairs",
    "One row per preference pair: both completions, their verdicts and values, and the problem.",
    ("examples", "scores", "problems", "stage_runs"),
    columns(
        example_id=("BIGINT", "id of the pair"),
        run_id=("VARCHAR", "the run that built it"),
        round=("INTEGER", "the round that built it"),
        builder=("VARCHAR", "label of the stage that built it"),
        problem_id=("BIGINT", "the problem"),
        problem=("VARCHAR", "the problem's text"),
        reference=("VARCHAR", "its known answer"),
        prompt=("VARCHAR", "the prompt the loss uses"),
        chosen=("VARCHAR", "the preferred completion"),
        rejected=("VARCHAR", "the other one"),
        chosen_rollout_id=("BIGINT", "rollout of `chosen`"),
        rejected_rollout_id=("BIGINT", "rollout of `rejected`"),
        chosen_verdict=("VARCHAR", "verdict on `chosen`"),
        rejected_verdict=("VARCHAR", "verdict on `rejected`"),
        chosen_value=("DOUBLE", "mean value of `chosen`"),
        rejected_value=("DOUBLE", "mean value of `rejected`"),
        margin=("DOUBLE", "score of chosen minus score of rejected, as the builder had it"),
        weight=("DOUBLE", "weight in the loss; null = 1"),
    ),
    f"""
SELECT e.example_id, e.run_id, e.round, e.builder, e.problem_id, p.prompt AS problem, p.reference, e.prompt, e.chosen,
  e.rejected, e.rollout_id AS chosen_rollout_id, e.rejected_rollout_id, c.verdict AS chosen_verdict,
  r.verdict AS rejected_verdict, c.value AS chosen_value, r.value AS rejected_value, e.margin, e.weight
FROM examples e
LEFT JOIN {_said("e.run_id", "e.rollout_id")} c ON true
LEFT JOIN {_said("e.run_id", "e.rejected_rollout_id")} r ON true
LEFT JOIN problems p ON p.problem_id = e.problem_id
WHERE e.kind = 'pair'""",
    (
        Query(
            "What do the pairs of a round look like?",
            "SELECT problem, chosen, rejected, chosen_value, rejected_value, margin FROM v_pairs\n"
            "WHERE round = 1 ORDER BY example_id LIMIT 5",
        ),
    ),
)

# LEFT JOIN, although every example trained on has its policy: DuckDB may then not begin with all policies, and joins a
# query's few to `policy_examples` before it looks at the examples (1.5x the time of SQL by hand became 1.2x).
V_TRAINED_ON = ReadyView(
    "v_trained_on",
    "One row per policy and example it was trained on, ids and names alone: fast enough to follow whole ancestries of "
    "policies. `v_training_sets` adds texts and verdicts.",
    ("policies", "policy_examples", "examples"),
    columns(
        policy_id=("BIGINT", "the policy"),
        policy=("VARCHAR", "its name"),
        run_id=("VARCHAR", "the run that trained it"),
        round=("INTEGER", "the round that trained it"),
        example_id=("BIGINT", "the example"),
        kind=("VARCHAR", "'sft', 'pair' or 'group'"),
        problem_id=("BIGINT", "the problem"),
        rollout_id=("BIGINT", "rollout of the text trained on; of a pair that of the preferred one"),
        rejected_rollout_id=("BIGINT", "rollout of the other completion of a pair"),
    ),
    """
SELECT t.policy_id, p.name AS policy, p.run_id, p.round, e.example_id, e.kind, e.problem_id, e.rollout_id,
  e.rejected_rollout_id
FROM policy_examples t JOIN examples e ON e.example_id = t.example_id
LEFT JOIN policies p ON p.policy_id = t.policy_id""",
    (
        Query(
            "How many examples and problems made each champion, and each of its ancestors?",
            "SELECT a.policy, a.distance, a.ancestor, count(*) AS examples, count(DISTINCT t.problem_id) AS problems\n"
            "FROM v_ancestors a JOIN policies p USING (policy_id) JOIN v_trained_on t ON t.policy_id = a.ancestor_id\n"
            "WHERE p.status = 'champion' GROUP BY ALL ORDER BY ALL",
        ),
        Query(
            "Who sampled what a policy and its ancestors were trained on?",
            "SELECT a.distance, s.name AS sampled_by, q.category, count(*) AS examples\n"
            "FROM v_ancestors a JOIN v_trained_on t ON t.policy_id = a.ancestor_id\n"
            "  LEFT JOIN rollouts r USING (rollout_id) LEFT JOIN policies s ON s.policy_id = r.policy_id\n"
            "  LEFT JOIN problems q ON q.problem_id = t.problem_id\n"
            "WHERE a.policy = 'smoke/r2' GROUP BY ALL ORDER BY ALL",
        ),
    ),
)

V_TRAINING_SETS = ReadyView(
    "v_training_sets",
    "One row per policy and example it was trained on: the rollout, who sampled it, the problem, and what was said.",
    ("policies", "policy_examples", "examples", "rollouts", "problems", "scores", "stage_runs"),
    columns(
        policy_id=("BIGINT", "the policy"),
        policy=("VARCHAR", "its name"),
        run_id=("VARCHAR", "the run that trained it"),
        round=("INTEGER", "the round that trained it"),
        example_id=("BIGINT", "the example"),
        kind=("VARCHAR", "'sft', 'pair' or 'group'"),
        builder=("VARCHAR", "label of the stage that built it"),
        built_in=("INTEGER", "round that built it: earlier than `round` with a data window"),
        prompt=("VARCHAR", "the prompt the loss uses"),
        completion=("VARCHAR", "the text trained on; of a pair the preferred one"),
        rejected=("VARCHAR", "the other completion of a pair"),
        weight=("DOUBLE", "weight in the loss, the mix included; null = 1"),
        rollout_id=("BIGINT", "rollout of `completion`"),
        rejected_rollout_id=("BIGINT", "rollout of `rejected`"),
        sampled_by=("VARCHAR", "name of the policy that sampled the rollout"),
        sampled_in=("INTEGER", "round that sampled it"),
        problem_id=("BIGINT", "the problem"),
        category=("VARCHAR", "its category"),
        origin=("VARCHAR", "'task', or the plugin that synthesized the problem"),
        reference=("VARCHAR", "its known answer"),
        verdict=("VARCHAR", "verdict of all verifiers on the rollout"),
        value=("DOUBLE", "mean of their values"),
        said=("VARCHAR[]", "each scorer with version and verdict"),
    ),
    f"""
WITH trained AS (
  SELECT t.policy_id, p.name AS policy, p.run_id, p.round, t.share, e.example_id, e.kind, e.builder,
    e.run_id AS built_by, e.round AS built_in, e.prompt, coalesce(e.completion, e.chosen) AS completion, e.rejected,
    e.weight, e.rollout_id, e.rejected_rollout_id, e.problem_id
  FROM policies p JOIN policy_examples t USING (policy_id) JOIN examples e ON e.example_id = t.example_id)
SELECT t.policy_id, t.policy, t.run_id, t.round, t.example_id, t.kind, t.builder, t.built_in, t.prompt, t.completion,
  t.rejected, CASE WHEN t.share IS NULL THEN t.weight ELSE t.share * coalesce(t.weight, 1) END AS weight,
  t.rollout_id, t.rejected_rollout_id, sampler.name AS sampled_by, r.round AS sampled_in, t.problem_id, q.category,
  q.origin, q.reference, j.verdict, j.value, j.said
FROM trained t
LEFT JOIN rollouts r ON r.rollout_id = t.rollout_id
LEFT JOIN policies sampler ON sampler.policy_id = r.policy_id
LEFT JOIN problems q ON q.problem_id = t.problem_id
LEFT JOIN {_said("t.built_by", "t.rollout_id")} j ON true""",
    (
        Query(
            "Was anything trained on that no verifier passed?",
            "SELECT policy, count(*) AS examples, count(*) FILTER (verdict IS DISTINCT FROM 'pass') AS doubtful\n"
            "FROM v_training_sets GROUP BY policy ORDER BY policy",
        ),
    ),
)

VIEWS = (V_PAIRS, V_TRAINED_ON, V_TRAINING_SETS)
