"""Views of runs, rounds, policies and the ledger."""

from __future__ import annotations

from strop.storage.ready_views.view import Query, ReadyView, columns, of_runs

V_ROUNDS = ReadyView(
    "v_rounds",
    "One row per run and round: what came out of it. A rerun counts the rollouts and decisions it re-uses.",
    ("stage_runs", "policies", "metrics", "rollouts", "decisions"),
    columns(
        run_id=("VARCHAR", "the run"),
        round=("INTEGER", "the round; 0 examines the base policy"),
        policy=("VARCHAR", "name of the policy made in the round"),
        status=("VARCHAR", "its status now"),
        pass_at_1=("DOUBLE", "held-out pass@1 of the round"),
        ci_low=("DOUBLE", "lower end of its 95 % interval"),
        ci_high=("DOUBLE", "upper end of its 95 % interval"),
        pass_at_8=("DOUBLE", "held-out pass@8"),
        diversity=("DOUBLE", "held-out diversity"),
        kept=("BIGINT", "training rollouts that every filter kept; null where none ran"),
        rollouts=("BIGINT", "training rollouts sampled, or re-used"),
        seconds=("DOUBLE", "seconds of work, summed over shards that ran side by side"),
    ),
    f"""
WITH work AS (SELECT run_id, round, sum(seconds) AS seconds FROM stage_runs GROUP BY ALL),
made AS (
  SELECT run_id, round, max_by(name, policy_id) AS policy, max_by(status, policy_id) AS status,
    max(policy_id) AS policy_id
  FROM {of_runs("policies", "policy_id, name, status, kind")} WHERE kind <> 'reward' GROUP BY ALL),
measured AS (
  SELECT m.run_id, m.round,
    any_value(value) FILTER (name = 'pass@1') AS pass_at_1,
    any_value(ci_low) FILTER (name = 'pass@1') AS ci_low,
    any_value(ci_high) FILTER (name = 'pass@1') AS ci_high,
    any_value(value) FILTER (name = 'pass@8') AS pass_at_8,
    any_value(value) FILTER (name = 'diversity') AS diversity
  FROM {of_runs("metrics", "policy_id, name, slice, value, ci_low, ci_high")} m LEFT JOIN made USING (run_id, round)
  WHERE m.slice = 'heldout' AND (made.policy_id IS NULL OR m.policy_id IS NULL OR m.policy_id = made.policy_id)
  GROUP BY ALL),
sampled AS (
  SELECT run_id, round, count(*) AS rollouts FROM {of_runs("rollouts", "split")} WHERE split = 'train' GROUP BY ALL),
judged AS (
  SELECT run_id, round, count(*) FILTER (keep) AS kept FROM (
    SELECT run_id, round, subject_id, bool_and(keep) AS keep
    FROM {of_runs("decisions", "subject_kind, subject_id, keep")}
    WHERE subject_kind = 'rollout' GROUP BY ALL)
  GROUP BY ALL)
SELECT run_id, round, policy, status, pass_at_1, ci_low, ci_high, pass_at_8, diversity, kept,
  coalesce(rollouts, 0) AS rollouts, seconds
FROM work LEFT JOIN made USING (run_id, round) LEFT JOIN measured USING (run_id, round)
LEFT JOIN sampled USING (run_id, round) LEFT JOIN judged USING (run_id, round)
ORDER BY run_id, round""",
    (
        Query(
            "How did each run fare, round by round?",
            "SELECT run_id, round, policy, status, pass_at_1, kept, rollouts FROM v_rounds ORDER BY run_id, round",
        ),
    ),
)

V_RUNS = ReadyView(
    "v_runs",
    "One row per run: its recipe, where it stands and what it gained.",
    ("runs", "stage_runs", "policies", "metrics"),
    columns(
        run_id=("VARCHAR", "the run"),
        recipe=("VARCHAR", "name of its recipe"),
        recipe_hash=("VARCHAR", "hash of the recipe"),
        seed=("BIGINT", "the run's seed"),
        parent_run_id=("VARCHAR", "the run it re-uses, where it is a rerun"),
        created_at=("TIMESTAMP WITH TIME ZONE", "when it was started"),
        rounds=("INTEGER", "the last round with something committed"),
        champion=("VARCHAR", "its champion"),
        base_pass_at_1=("DOUBLE", "held-out pass@1 of the base policy"),
        pass_at_1=("DOUBLE", "held-out pass@1 of the champion"),
        tokens=("BIGINT", "tokens sampled and trained on by its own stages"),
        seconds=("DOUBLE", "seconds of work of its own stages"),
    ),
    """
WITH work AS (
  SELECT run_id, max(round) AS rounds, sum(tokens)::BIGINT AS tokens, sum(seconds) AS seconds
  FROM stage_runs GROUP BY run_id),
champion AS (
  SELECT run_id, max_by(name, round) AS champion, max_by(policy_id, round) AS policy_id
  FROM policies WHERE status = 'champion' GROUP BY run_id),
measured AS (
  SELECT run_id, round, policy_id, value FROM metrics WHERE name = 'pass@1' AND slice = 'heldout')
SELECT r.run_id, r.recipe, r.recipe_hash, r.seed, r.parent_run_id, r.created_at, work.rounds, champion.champion,
  (SELECT any_value(value) FROM measured m WHERE m.run_id = r.run_id AND m.round = 0) AS base_pass_at_1,
  (SELECT max_by(value, m.round) FROM measured m
   WHERE m.run_id = r.run_id AND m.policy_id = champion.policy_id) AS pass_at_1,
  work.tokens, work.seconds
FROM runs r LEFT JOIN work USING (run_id) LEFT JOIN champion USING (run_id)""",
    (
        Query(
            "Which recipe gained most, over its seeds?",
            "SELECT recipe, recipe_hash, count(*) AS runs, avg(pass_at_1 - base_pass_at_1) AS gain\n"
            "FROM v_runs GROUP BY ALL ORDER BY gain DESC",
        ),
    ),
)

V_POLICIES = ReadyView(
    "v_policies",
    "One row per policy: what it came from, what it scored, and what the gate said.",
    ("policies", "metrics", "decisions"),
    columns(
        policy_id=("BIGINT", "id of the policy"),
        policy=("VARCHAR", "its name"),
        run_id=("VARCHAR", "the run that made it"),
        round=("INTEGER", "the round that made it; 0 = the base"),
        status=("VARCHAR", "'candidate', 'champion', 'retired', 'rejected', or 'scorer'"),
        kind=("VARCHAR", "'base', 'full', 'lora', or 'reward': a reward model"),
        parent=("VARCHAR", "name of the policy training started from"),
        reference=("VARCHAR", "name of the objective's reference policy, where it has one"),
        objective=("VARCHAR", "objective it was trained with"),
        examples=("BIGINT", "examples it was trained on"),
        steps=("BIGINT", "optimiser steps"),
        loss=("DOUBLE", "mean loss over the last tenth of the steps"),
        pass_at_1=("DOUBLE", "held-out pass@1"),
        ci_low=("DOUBLE", "lower end of its 95 % interval"),
        ci_high=("DOUBLE", "upper end of its 95 % interval"),
        pass_at_8=("DOUBLE", "held-out pass@8"),
        diversity=("DOUBLE", "held-out diversity"),
        gate=("VARCHAR", "label of the gate that decided on it"),
        action=("VARCHAR", "the gate's 'promote', 'keep', 'roll_back' or 'stop'"),
        reason=("VARCHAR", "the gate's reason"),
        content_hash=("VARCHAR", "hash of the checkpoint's files"),
        path=("VARCHAR", "checkpoint directory, relative to the lake unless absolute"),
    ),
    """
WITH measured AS (
  SELECT policy_id,
    max_by(value, round) FILTER (name = 'pass@1') AS pass_at_1,
    max_by(ci_low, round) FILTER (name = 'pass@1') AS ci_low,
    max_by(ci_high, round) FILTER (name = 'pass@1') AS ci_high,
    max_by(value, round) FILTER (name = 'pass@8') AS pass_at_8,
    max_by(value, round) FILTER (name = 'diversity') AS diversity
  FROM metrics WHERE slice = 'heldout' GROUP BY policy_id),
gated AS (
  SELECT subject_id AS policy_id, max_by(decider, decision_id) AS gate, max_by(action, decision_id) AS action,
    max_by(reason, decision_id) AS reason
  FROM decisions WHERE subject_kind = 'policy' GROUP BY subject_id)
SELECT p.policy_id, p.name AS policy, p.run_id, p.round, p.status, p.kind, parent.name AS parent,
  reference.name AS reference, p.objective, p.examples, p.steps, p.loss, pass_at_1, ci_low, ci_high, pass_at_8,
  diversity, gate, action, reason, p.content_hash, p.path
FROM policies p LEFT JOIN policies parent ON parent.policy_id = p.parent_policy_id
LEFT JOIN policies reference ON reference.policy_id = p.reference_policy_id
LEFT JOIN measured ON measured.policy_id = p.policy_id LEFT JOIN gated ON gated.policy_id = p.policy_id""",
    (
        Query(
            "What did the gate say of every candidate?",
            "SELECT policy, parent, examples, pass_at_1, action, reason FROM v_policies ORDER BY run_id, round",
        ),
    ),
)

V_STAGE_RUNS = ReadyView(
    "v_stage_runs",
    "The ledger, one row per committed shard, with the stage run whose rows it stands for.",
    ("stage_runs",),
    columns(
        stage_run_id=("BIGINT", "id of the stage run"),
        run_id=("VARCHAR", "the run"),
        round=("INTEGER", "the round"),
        stage=("VARCHAR", "label of the stage in the recipe"),
        kind=("VARCHAR", "kind of stage"),
        shard=("INTEGER", "index of the shard"),
        plugin=("VARCHAR", "plugin that ran"),
        plugin_version=("VARCHAR", "version it declares"),
        config_json=("VARCHAR", "its config"),
        seed=("BIGINT", "seed handed to it"),
        rows=("BIGINT", "rows written, over all tables"),
        tokens=("BIGINT", "tokens sampled or trained on"),
        seconds=("DOUBLE", "seconds of work"),
        started_at=("TIMESTAMP WITH TIME ZONE", "when the work began"),
        host=("VARCHAR", "machine that did it"),
        rows_of=("BIGINT", "stage run that wrote its rows: itself, or the one it re-uses"),
        source_run_id=("VARCHAR", "run of that stage run, where it is another's"),
    ),
    """
SELECT s.stage_run_id, s.run_id, s.round, s.stage, s.kind, s.shard, s.plugin, s.plugin_version, s.config_json, s.seed,
  list_sum(json_extract(s.rows_json, '$.*')::BIGINT[])::BIGINT AS rows, s.tokens, s.seconds, s.started_at, s.host,
  coalesce(s.reuses, s.stage_run_id) AS rows_of, source.run_id AS source_run_id
FROM stage_runs s LEFT JOIN stage_runs source ON source.stage_run_id = s.reuses""",
    (
        Query(
            "Where did the time go?",
            "SELECT stage, plugin, plugin_version, count(*) AS shards, sum(seconds) AS seconds, sum(rows) AS rows\n"
            "FROM v_stage_runs GROUP BY ALL ORDER BY seconds DESC",
        ),
    ),
)

VIEWS = (V_RUNS, V_ROUNDS, V_POLICIES, V_STAGE_RUNS)
