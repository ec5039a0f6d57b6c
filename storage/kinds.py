"""The kinds of thing that lineage knows: their table and id, the columns it reads of them, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
CUT = 60
"""Characters shown of a text in a label."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How rows of one table are found and shown."""

    name: str
    table: str
    """'' for what has no table of its own: a seed, a code version, a scorer, a group."""
    id: str
    label: Callable[[Row], str]
    wanted: str = ""
    """Columns to read, besides the id and those that every row carries."""
    facts: tuple[str, ...] = ()
    """Columns told beside the label."""
    plural: str = ""

    @property
    def names_text(self) -> bool:
        """Whether its ids are text."""
        return self.id in ("run_id", "recipe_hash", "code_version", "scorer_id")

    def named(self, count: int) -> str:
        """'1 policy', '3 policies'."""
        return f"{count:,} {self.name if count == 1 else self.plural or self.table}".replace("_", " ")


def quoted(text: object, limit: int = CUT) -> str:
    """A text in quotation marks, on one line and cut."""
    line = str(text if text is not None else "").replace("\n", "⏎")
    return f"'{line if len(line) <= limit else line[: limit - 1] + '…'}'"


def number(value: float | None) -> str:
    """A number as people write it: 0.5958, 1, 5120."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _policy(row: Row) -> str:
    return f"{row['name']} ({row['status']})"


def _rollout(row: Row) -> str:
    branch = "" if row["branch_step"] is None else f", after step {row['branch_step']} of its parent"
    ended = {"length": ", cut off", "error": f", error: {row['error']}"}.get(row["finish_reason"], "")
    return f"{quoted(row['completion'])}{ended}{branch}"


def _example(row: Row) -> str:
    if row["kind"] == "pair":
        return f"pair {quoted(row['chosen'], 30)} over {quoted(row['rejected'], 30)}"
    return f"{row['kind']} {quoted(row['prompt'], 30)} → {quoted(row['completion'], 30)}"


def _score(row: Row) -> str:
    part = "" if row["step_index"] is None else f" of {row['subject_kind']} {row['step_index']}"
    said = " ".join(filter(None, [row["verdict"], number(row["value"])]))
    return f"{row['scorer']} {row['scorer_version']}{part}: {said}" + (f" ({row['reason']})" if row["reason"] else "")


def _decision(row: Row) -> str:
    said = row["action"] or ("keep" if row["keep"] else "drop")
    return f"{row['decider']}: {said}" + (f" ({row['reason']})" if row["reason"] else "")


def _plan(row: Row) -> str:
    asked = "n by the generator" if row["n"] is None else f"n = {row['n']}"
    return asked + (f" ({row['reason']})" if row["reason"] else "")


def _metric(row: Row) -> str:
    interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"{row['name']} = {number(row['value'])}{interval} on {row['slice']}"


def _stage_run(row: Row) -> str:
    shard = "" if row["shards"] == 1 else f", shard {row['shard'] + 1} of {row['shards']}"
    return f"{row['stage']} ({row['plugin']} {row['plugin_version']}), round {row['round']} of {row['run_id']}{shard}"


def _itself(row: Row) -> str:
    return str(next(iter(row.values())))


_ALL = (
    Kind(
        "policy",
        "policies",
        "policy_id",
        _policy,
        "name, status, kind, content_hash, objective, path, examples, steps, loss",
        ("kind", "objective", "examples", "steps", "loss", "content_hash", "path"),
    ),
    Kind(
        "example",
        "examples",
        "example_id",
        _example,
        "kind, builder, left(prompt, 80) AS prompt, left(completion, 80) AS completion, left(chosen, 80) AS chosen, "
        "left(rejected, 80) AS rejected, reward, weight, margin",
        ("builder", "reward", "weight", "margin"),
    ),
    Kind(
        "rollout",
        "rollouts",
        "rollout_id",
        _rollout,
        "sample_index, split, left(completion, 80) AS completion, n_tokens, finish_reason, left(error, 80) AS error, "
        "temperature, seed, engine, branch_step",
        ("split", "sample_index", "n_tokens", "temperature", "engine", "seed"),
    ),
    Kind(
        "score",
        "scores",
        "score_id",
        _score,
        "subject_kind, step_index, scorer, scorer_version, verdict, value, answer, reason",
        ("answer",),
    ),
    Kind(
        "decision",
        "decisions",
        "decision_id",
        _decision,
        "decider, keep, action, weight, reason",
        ("weight",),
    ),
    Kind(
        "problem",
        "problems",
        "problem_id",
        lambda row: quoted(row["prompt"]) + (f" = {row['reference']}" if row["reference"] is not None else ""),
        "problem_key, task, split, category, level, left(prompt, 120) AS prompt, left(reference, 80) AS reference, "
        "origin, status",
        ("task", "category", "level", "split", "origin", "status", "problem_key"),
    ),
    Kind("plan", "plans", "plan_id", _plan, "n, branch_step, params, reason", ("branch_step", "params")),
    Kind(
        "context",
        "contexts",
        "context_id",
        lambda row: f"{row['name']}: {quoted(row['text'])}",
        "memory, name, left(text, 120) AS text, op",
        ("memory", "op"),
    ),
    Kind(
        "metric",
        "metrics",
        "metric_id",
        _metric,
        "name, slice, value, n, ci_low, ci_high",
        ("n",),
    ),
    Kind(
        "stage_run",
        "stage_runs",
        "stage_run_id",
        _stage_run,
        "stage, kind, shard, shards, plugin, plugin_version, seed, key, rows_json, seconds, tokens, host, started_at, "
        "config_json",
        ("seed", "rows_json", "tokens", "seconds", "host", "started_at", "config_json", "key"),
    ),
    Kind(
        "run",
        "runs",
        "run_id",
        lambda row: f"{row['run_id']}",
        "recipe, seed, strop_version, code_version, created_at, recipe_hash, sources_json",
        ("recipe", "seed", "strop_version", "created_at", "sources_json"),
    ),
    Kind(
        "recipe",
        "runs",
        "recipe_hash",
        lambda row: f"{row['recipe']} ({row['recipe_hash']})",
        "recipe",
        plural="recipes",
    ),
    Kind("seed", "", "seed", _itself, plural="seeds"),
    Kind("code", "", "code_version", _itself, plural="code versions"),
    Kind("scorer", "", "scorer_id", _itself, plural="scorers"),
    Kind("group", "", "group_id", lambda row: "rollouts of one prompt under one policy", plural="groups"),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
