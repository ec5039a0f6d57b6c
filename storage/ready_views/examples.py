"""An example query for each table, for the reference page; those of the views stand beside them."""

from __future__ import annotations

from strop.storage.ready_views.view import Query

TABLES: dict[str, tuple[Query, ...]] = {
    "runs": (
        Query("Which runs are there?", "SELECT run_id, recipe, seed, parent_run_id FROM runs ORDER BY created_at"),
        Query(
            "What differs between the recipes of two runs?",
            "SELECT key, any_value(value) FILTER (run_id = 'a') AS a, any_value(value) FILTER (run_id = 'b') AS b\n"
            "FROM (SELECT run_id, unnest(json_keys(recipe_json)) AS key, recipe_json ->> ('$.' || key) AS value "
            "FROM runs)\nGROUP BY key HAVING a IS DISTINCT FROM b",
        ),
    ),
    "stage_runs": (
        Query(
            "How far is each run?",
            "SELECT run_id, max(round) AS round, max_by(stage, started_at) AS stage FROM stage_runs GROUP BY run_id",
        ),
    ),
    "problems": (
        Query(
            "How many problems of each kind are there?",
            "SELECT task, split, origin, category, count(*) AS n FROM problems GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "plans": (
        Query(
            "Why were problems selected?",
            "SELECT run_id, round, reason, count(*) AS n FROM plans GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "rollouts": (
        Query(
            "How long are completions, round by round?",
            "SELECT run_id, round, split, avg(n_tokens) AS tokens, avg((finish_reason = 'length')::INT) AS cut_off\n"
            "FROM rollouts GROUP BY ALL ORDER BY ALL",
        ),
        Query(
            "Is the policy getting surer of itself?",
            "SELECT run_id, round, avg(entropy) AS entropy, avg(list_sum(logps)) AS logp FROM rollouts\n"
            "WHERE split = 'train' GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "scores": (
        Query(
            "What are the commonest reasons to fail?",
            "SELECT scorer, regexp_replace(reason, '[0-9]+', '#', 'g') AS reason, count(*) AS n FROM scores\n"
            "WHERE verdict = 'fail' GROUP BY ALL ORDER BY n DESC LIMIT 5",
        ),
    ),
    "decisions": (
        Query(
            "How much did each filter keep?",
            "SELECT run_id, round, decider, count(*) FILTER (keep) AS kept, count(*) AS judged FROM decisions\n"
            "WHERE subject_kind = 'rollout' GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "examples": (
        Query(
            "What was built?",
            "SELECT run_id, round, builder, kind, count(*) AS n, count(DISTINCT problem_id) AS problems FROM examples\n"
            "GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "policies": (
        Query(
            "Where are the champions?",
            "SELECT name, path, content_hash FROM policies WHERE status = 'champion' ORDER BY name",
        ),
    ),
    "policy_examples": (
        Query(
            "Which examples made several policies?",
            "SELECT example_id, count(*) AS policies FROM policy_examples GROUP BY example_id HAVING policies > 1",
        ),
    ),
    "train_metrics": (
        Query(
            "How did the loss fall?",
            "SELECT run_id, round, step, value AS loss FROM train_metrics WHERE name = 'loss' ORDER BY ALL",
        ),
        Query(
            "Which optimiser steps had their gradients scaled down?",
            "SELECT run_id, round, count(*) FILTER (value > 1) AS scaled, count(*) AS steps FROM train_metrics\n"
            "WHERE name = 'grad_norm' GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "token_logps": (
        Query(
            "How far is the policy from its reference, by round? (KL, estimated on its own rollouts)",
            "SELECT r.run_id, r.round, avg(list_sum(r.logps) - list_sum(t.logps)) AS kl FROM token_logps t\n"
            "JOIN rollouts r USING (rollout_id) WHERE r.temperature = 1 GROUP BY ALL ORDER BY ALL",
        ),
    ),
    "contexts": (
        Query(
            "How does the library stand?",
            "SELECT memory, name, text FROM contexts c\n"
            "WHERE op <> 'delete' AND context_id NOT IN (\n"
            "  SELECT parent_context_id FROM contexts WHERE parent_context_id IS NOT NULL)",
        ),
    ),
    "metrics": (
        Query(
            "How does each category fare?",
            "SELECT run_id, round, slice, value, ci_low, ci_high FROM metrics WHERE name = 'pass@1' ORDER BY ALL",
        ),
    ),
    "plugin_state": (
        Query("What do plugins remember?", "SELECT run_id, round, stage, state_json FROM plugin_state ORDER BY ALL"),
    ),
    "schema_versions": (Query("Which versions has the lake been through?", "SELECT * FROM schema_versions"),),
}
