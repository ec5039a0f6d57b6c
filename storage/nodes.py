"""Nodes of a lineage tree, and the reader that makes them from the lake's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strop.storage.console import Console
from strop.storage.views import literal

SAMPLES = 3
"""Members shown of a group with many; `Node.more` counts the rest."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in the lake, or a group of alike things, and what it leads to."""

    kind: str
    """'run', 'stage_run', 'problem', 'plan', 'rollout', 'score', 'decision', 'example', 'policy', 'context',
    'metric'; for a group the plural."""
    id: str
    """As text, since a BIGINT does not survive JavaScript's numbers; empty for a group."""
    label: str
    relation: str = ""
    """How the node above leads to this one: 'sampled by', 'trained on', ..."""
    facts: dict[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()
    more: int = 0
    """Members left out of `children`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How rows of one table are found and shown."""

    name: str
    table: str
    id: str
    wanted: str
    """Columns to read, besides those that every row carries."""
    label: str
    """Format string over them."""
    facts: tuple[str, ...]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "policy",
            "policies",
            "policy_id",
            "policy_id, name, status, kind, parent_policy_id, reference_policy_id, content_hash, objective, path, "
            "examples, loss",
            "{name} ({status})",
            ("kind", "objective", "examples", "loss", "content_hash", "path"),
        ),
        Kind(
            "rollout",
            "rollouts",
            "rollout_id",
            "rollout_id, problem_id, policy_id, plan_id, context_id, parent_rollout_id, sample_index, split, "
            "left(completion, 200) AS completion, n_tokens, finish_reason, temperature, seed, engine",
            "{completion}",
            ("split", "sample_index", "n_tokens", "finish_reason", "temperature", "seed", "engine"),
        ),
        Kind(
            "problem",
            "problems",
            "problem_id",
            "problem_id, problem_key, task, split, category, level, left(prompt, 200) AS prompt, reference, parents, "
            "origin, status",
            "{prompt}",
            ("task", "split", "category", "level", "reference", "origin", "status", "problem_key"),
        ),
        Kind(
            "example",
            "examples",
            "example_id",
            "example_id, kind, builder, problem_id, left(prompt, 80) AS prompt, "
            "left(coalesce(completion, chosen), 120) AS text, rollout_id, rejected_rollout_id, sources, reward, weight",
            "{prompt} → {text}",
            ("kind", "builder", "reward", "weight"),
        ),
        Kind(
            "score",
            "scores",
            "score_id",
            "score_id, subject_kind, subject_id, scorer, scorer_version, verdict, value, answer, reason",
            "{scorer}: {verdict} {value}",
            ("scorer", "scorer_version", "verdict", "value", "answer", "reason"),
        ),
        Kind(
            "decision",
            "decisions",
            "decision_id",
            "decision_id, subject_kind, subject_id, decider, keep, action, weight, reason",
            "{decider}: keep {keep}",
            ("keep", "action", "weight", "reason"),
        ),
        Kind(
            "plan",
            "plans",
            "plan_id",
            "plan_id, problem_id, n, context_id, start_rollout_id, branch_step, reason",
            "n = {n}",
            ("n", "branch_step", "reason"),
        ),
        Kind(
            "context",
            "contexts",
            "context_id",
            "context_id, memory, name, left(text, 120) AS text, op, parent_context_id, sources",
            "{name}: {text}",
            ("memory", "op"),
        ),
        Kind(
            "metric",
            "metrics",
            "metric_id",
            "metric_id, policy_id, context_id, name, slice, value, n, ci_low, ci_high",
            "{name} = {value}",
            ("slice", "value", "n", "ci_low", "ci_high"),
        ),
        Kind(
            "stage_run",
            "stage_runs",
            "stage_run_id",
            "stage, kind, shard, shards, plugin, plugin_version, seed, key, upstream, seconds, started_at",
            "{stage} ({plugin} {plugin_version}), round {round}, shard {shard}",
            ("kind", "plugin", "plugin_version", "seed", "shard", "shards", "seconds", "started_at", "key"),
        ),
        Kind(
            "run",
            "runs",
            "run_id",
            "recipe, seed, strop_version, code_version, created_at, recipe_hash",
            "{run_id}",
            ("recipe", "seed", "strop_version", "code_version", "created_at", "recipe_hash"),
        ),
    )
}
PLURAL = {kind.name: kind.table for kind in KINDS.values()}


class Reader:
    """Rows and nodes of one console; the ledger and the policies, short tables both, are read once and whole."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage_runs = {row["stage_run_id"]: row for row in self.rows("stage_run", "true")}
        self.policies = {row["policy_id"]: row for row in self.rows("policy", "true")}

    def select(self, sql: str) -> list[Row]:
        """Rows of a query as mappings."""
        result = self.console.query(sql)
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

    def rows(self, kind: str, where: str, limit: int | None = None) -> list[Row]:
        """Rows of one kind under a condition, in order of their id."""
        of = KINDS[kind]
        shared = "run_id, round, stage_run_id"
        clause = "" if limit is None else f" LIMIT {limit}"
        return self.select(f"SELECT {of.wanted}, {shared} FROM {of.table} WHERE {where} ORDER BY {of.id}{clause}")

    def row(self, kind: str, id: object) -> Row | None:
        """The row with an id; the newest, should it have been written again."""
        found = self.rows(kind, f"{KINDS[kind].id} = {literal(id)}")
        return found[-1] if found else None

    def count(self, kind: str, where: str) -> int:
        """How many rows of a kind satisfy a condition."""
        return int(self.select(f"SELECT count(*) AS n FROM {KINDS[kind].table} WHERE {where}")[0]["n"])

    def node(self, kind: str, row: Row, relation: str = "", children: Sequence[Node] = ()) -> Node:
        """The node of a row."""
        of = KINDS[kind]
        facts = {name: row[name] for name in of.facts if row.get(name) is not None}
        if kind not in ("run", "stage_run"):
            facts["made_by"] = self.made_by(row)
        return Node(kind, str(row[of.id]), of.label.format(**row), relation, facts, tuple(children))

    def made_by(self, row: Row) -> str:
        """One line on the stage run that wrote a row."""
        stage = self.stage_runs.get(row["stage_run_id"])
        if stage is None:
            return f"round {row['round']} of {row['run_id']}"
        plugin = f"{stage['plugin']} {stage['plugin_version']}, seed {stage['seed']}"
        return f"{stage['stage']} ({plugin}), round {row['round']} of {row['run_id']}"

    def group(
        self, kind: str, where: str, relation: str, expand: Callable[[Row], Sequence[Node]] | None = None
    ) -> list[Node]:
        """A group with its count and first members; as a list: nothing when it is empty, the member when it is one."""
        total = self.count(kind, where)
        shown = []
        for row in self.rows(kind, where, SAMPLES) if total else []:
            shown.append(self.node(kind, row, children=expand(row) if expand else ()))
        if total == 1:
            return [replace(shown[0], relation=relation)]
        plural = PLURAL[kind].replace("_", " ")
        group = Node(
            PLURAL[kind], "", f"{total} {plural}", relation, {"count": total}, tuple(shown), total - len(shown)
        )
        return [group] if total else []
