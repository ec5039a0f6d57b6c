"""The tables of the lake, each one frozen dataclass: field, SQL type and meaning in one place.

A plugin builds these rows and fills the fields it knows; the commit stamps ids, run, round and stage run.
Light on purpose: importing it needs neither duckdb nor pyarrow, so that `--help` and `validate` stay fast.
"""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

SCHEMA_VERSION = 4
"""Raised by every change of a table; a lake with a higher one is refused (see `lake.open_lake`)."""
REWARD = "reward"
"""Kind of the policies that score rollouts and write none."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column as the lake stores it."""

    name: str
    sql_type: str
    doc: str


def _col(sql_type: str, doc: str) -> tuple[str, str]:
    return (sql_type, doc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What every row of every stage carries; filled when its shard is stamped, never by a plugin."""

    TABLE: ClassVar[str] = ""
    ID: ClassVar[str | None] = None
    """The column that holds the row's own id, where it has one."""

    run_id: Annotated[str, _col("VARCHAR", "the run that wrote the row")] = ""
    round: Annotated[int, _col("INTEGER", "round of that run; 0 is the base policy")] = 0
    stage_run_id: Annotated[int, _col("BIGINT", "the `stage_runs` row that wrote it; also `id >> 20`")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Row):
    """One run of one recipe with one seed."""

    TABLE: ClassVar[str] = "runs"

    recipe: Annotated[str, _col("VARCHAR", "name of the recipe")]
    recipe_json: Annotated[str, _col("VARCHAR", "the whole recipe after `--set`, as canonical JSON")]
    recipe_hash: Annotated[str, _col("VARCHAR", "hash of `recipe_json` without the number of rounds")]
    seed: Annotated[int, _col("BIGINT", "the run's seed")]
    strop_version: Annotated[str, _col("VARCHAR", "version of Strop that started the run")]
    code_version: Annotated[str | None, _col("VARCHAR", "git commit of Strop's source, where there is one")] = None
    created_at: Annotated[datetime.datetime | None, _col("TIMESTAMPTZ", "when the run was started")] = None
    parent_run_id: Annotated[str | None, _col("VARCHAR", "the run it re-uses, where it is a rerun")] = None
    sources_json: Annotated[
        str | None, _col("VARCHAR", "a rerun: which rounds of which runs it re-uses, as JSON; an import: what it read")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun(Row):
    """One committed shard of one stage: the ledger. A shard whose `key` is here is never run again."""

    TABLE: ClassVar[str] = "stage_runs"
    ID: ClassVar[str | None] = None

    key: Annotated[str, _col("VARCHAR", "content key of the shard: plugin, config, seed and the keys it read")]
    stage: Annotated[str, _col("VARCHAR", "label of the stage in the recipe")]
    kind: Annotated[str, _col("VARCHAR", "kind of stage: select, generate, verify, ...")]
    shard: Annotated[int, _col("INTEGER", "index of the shard within the stage")]
    shards: Annotated[int, _col("INTEGER", "number of shards of the stage in this round")]
    plugin: Annotated[str, _col("VARCHAR", "plugin that ran")]
    plugin_version: Annotated[str, _col("VARCHAR", "version the plugin declares")]
    config_json: Annotated[str, _col("VARCHAR", "the plugin's config as canonical JSON")]
    upstream: Annotated[list[str], _col("VARCHAR[]", "keys of the stage runs whose rows it read")]
    seed: Annotated[int, _col("BIGINT", "seed handed to the plugin")]
    rows_json: Annotated[str, _col("VARCHAR", "rows written per table, as JSON")]
    tokens: Annotated[int | None, _col("BIGINT", "tokens sampled or trained on, where the stage counts them")] = None
    started_at: Annotated[datetime.datetime | None, _col("TIMESTAMPTZ", "when the work began")] = None
    seconds: Annotated[float | None, _col("DOUBLE", "wall time of the work, in seconds")] = None
    host: Annotated[str | None, _col("VARCHAR", "machine that did it")] = None
    reuses: Annotated[
        int | None, _col("BIGINT", "stage run whose rows stand for this one's, in a rerun; null = it did the work")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(Row):
    """One problem a policy is asked to solve, from a task or synthesized in a round."""

    TABLE: ClassVar[str] = "problems"
    ID: ClassVar[str | None] = "problem_id"

    problem_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    problem_key: Annotated[str, _col("VARCHAR", "hash of task, prompt and reference: the same in every run")] = ""
    task: Annotated[str, _col("VARCHAR", "label of the task it belongs to")] = ""
    split: Annotated[str, _col("VARCHAR", "'train' or 'heldout'; disjoint by `problem_key`")] = "train"
    category: Annotated[str | None, _col("VARCHAR", "the task's own grouping, where it has one")] = None
    level: Annotated[float | None, _col("DOUBLE", "the task's own difficulty, where it has one")] = None
    prompt: Annotated[str, _col("VARCHAR", "the text of the problem, before any template")]
    messages: Annotated[str | None, _col("VARCHAR", "chat messages as JSON, where the task gives them")] = None
    reference: Annotated[str | None, _col("VARCHAR", "the known answer")] = None
    aux: Annotated[str | None, _col("VARCHAR", "whatever else the task's scorer needs, as JSON")] = None
    parents: Annotated[list[int], _col("BIGINT[]", "problems it was synthesized from")] = dataclasses.field(
        default_factory=list
    )
    origin: Annotated[str, _col("VARCHAR", "'task', or the plugin that synthesized it")] = "task"
    status: Annotated[str, _col("VARCHAR", "'active' problems may be selected; 'rejected' ones may not")] = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Row):
    """One order of a selector to a generator: sample this problem n times, from here, in this context."""

    TABLE: ClassVar[str] = "plans"
    ID: ClassVar[str | None] = "plan_id"

    plan_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    problem_id: Annotated[int, _col("BIGINT", "the problem")]
    n: Annotated[int | None, _col("INTEGER", "rollouts asked for; null = the generator's own number")] = None
    context_id: Annotated[int | None, _col("BIGINT", "context to put before the problem")] = None
    start_rollout_id: Annotated[int | None, _col("BIGINT", "rollout to continue from")] = None
    branch_step: Annotated[int | None, _col("INTEGER", "step of it to continue after")] = None
    params: Annotated[str | None, _col("VARCHAR", "overrides of the generator's config, as JSON")] = None
    reason: Annotated[str | None, _col("VARCHAR", "why the selector chose it")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(Row):
    """One completion a policy sampled for a problem. Discarded ones stay: pass@k and baselines need them."""

    TABLE: ClassVar[str] = "rollouts"
    ID: ClassVar[str | None] = "rollout_id"

    rollout_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    problem_id: Annotated[int, _col("BIGINT", "the problem it answers")]
    policy_id: Annotated[int, _col("BIGINT", "the policy that sampled it")] = 0
    plan_id: Annotated[int | None, _col("BIGINT", "the plan row that ordered it")] = None
    context_id: Annotated[int | None, _col("BIGINT", "context shown to the policy")] = None
    group_id: Annotated[int, _col("BIGINT", "rollouts of one prompt under one policy share it")] = 0
    sample_index: Annotated[int, _col("INTEGER", "index within the group, from 0")] = 0
    split: Annotated[str, _col("VARCHAR", "'train' or 'heldout'")] = "train"
    prompt: Annotated[str, _col("VARCHAR", "the text the sampler saw")] = ""
    train_prompt: Annotated[str | None, _col("VARCHAR", "the prompt the loss uses; null = `prompt`")] = None
    completion: Annotated[str, _col("VARCHAR", "the sampled text, without the end-of-sequence token")]
    n_tokens: Annotated[int, _col("INTEGER", "tokens sampled, the end-of-sequence token included")] = 0
    token_ids: Annotated[list[int] | None, _col("INTEGER[]", "the sampled tokens, end of sequence included")] = None
    logps: Annotated[
        list[float] | None, _col("FLOAT[]", "log-probability of each under the distribution sampled from, in nats")
    ] = None
    entropy: Annotated[float | None, _col("DOUBLE", "mean entropy of those distributions, in nats")] = None
    self_certainty: Annotated[
        float | None, _col("DOUBLE", "mean over tokens of -1/V sum_j log(V p_j), untempered (Kang et al. 2025)")
    ] = None
    step_offsets: Annotated[list[int] | None, _col("INTEGER[]", "character offset at which each step begins")] = None
    turn_offsets: Annotated[list[int] | None, _col("INTEGER[]", "character offset at which each turn begins")] = None
    turn_roles: Annotated[list[str] | None, _col("VARCHAR[]", "role of each turn")] = None
    loss_spans: Annotated[
        list[int] | None, _col("INTEGER[]", "character spans start,end,... the policy wrote; null = all")
    ] = None
    finish_reason: Annotated[str, _col("VARCHAR", "'stop', 'length' (cut off) or 'error'")] = "stop"
    error: Annotated[str | None, _col("VARCHAR", "what went wrong, where `finish_reason` is 'error'")] = None
    temperature: Annotated[float | None, _col("DOUBLE", "sampling temperature; 0 = greedy")] = None
    top_p: Annotated[float | None, _col("DOUBLE", "nucleus mass; 1 = off")] = None
    top_k: Annotated[int | None, _col("INTEGER", "tokens kept; 0 = off")] = None
    min_p: Annotated[float | None, _col("DOUBLE", "least share of the likeliest token's mass; null = off")] = None
    max_tokens: Annotated[int | None, _col("INTEGER", "limit on sampled tokens")] = None
    stop: Annotated[list[str] | None, _col("VARCHAR[]", "stop strings")] = None
    stop_token_ids: Annotated[list[int] | None, _col("INTEGER[]", "further stop tokens, if any")] = None
    engine: Annotated[str | None, _col("VARCHAR", "engine that sampled it")] = None
    seed: Annotated[int | None, _col("BIGINT", "seed of this one sample")] = None
    latency_s: Annotated[float | None, _col("DOUBLE", "seconds of the request, where the engine has one each")] = None
    n_prompt_tokens: Annotated[
        int | None, _col("INTEGER", "prompt tokens billed for it, where the engine is billed")
    ] = None
    cost: Annotated[float | None, _col("DOUBLE", "its price, in the currency of the engine's price table")] = None
    parent_rollout_id: Annotated[int | None, _col("BIGINT", "rollout it continues or refines")] = None
    branch_step: Annotated[int | None, _col("INTEGER", "step of the parent after which it branches")] = None
    detail: Annotated[str | None, _col("VARCHAR", "anything else, as JSON: what an import had no column for")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogps(Row):
    """What another policy (a reference, a teacher) makes of a rollout's tokens; computed once, then read from here."""

    TABLE: ClassVar[str] = "token_logps"

    rollout_id: Annotated[int, _col("BIGINT", "the rollout")]
    policy_hash: Annotated[str, _col("VARCHAR", "content hash of the policy's checkpoint")]
    policy_id: Annotated[int | None, _col("BIGINT", "the policy; null = a checkpoint from outside the lake")] = None
    logps: Annotated[list[float] | None, _col("FLOAT[]", "untempered log-probability of each of its tokens, in nats")]
    engine: Annotated[str | None, _col("VARCHAR", "engine that computed them")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Row):
    """What one scorer said of one subject. An error is never a zero: its value is null and it can be redone."""

    TABLE: ClassVar[str] = "scores"
    ID: ClassVar[str | None] = "score_id"

    score_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    subject_kind: Annotated[str, _col("VARCHAR", "'rollout', 'problem', 'step', 'token' or 'pair'")] = "rollout"
    subject_id: Annotated[int, _col("BIGINT", "id of the subject")]
    step_index: Annotated[int | None, _col("INTEGER", "index of the step or token, where the subject has parts")] = None
    problem_id: Annotated[int | None, _col("BIGINT", "problem of the subject, so that pass rates need no join")] = None
    scorer: Annotated[str, _col("VARCHAR", "label of the scorer")] = ""
    scorer_version: Annotated[str, _col("VARCHAR", "version the scorer declares")] = ""
    verdict: Annotated[str | None, _col("VARCHAR", "'pass', 'fail' or 'error'; null for a graded score alone")] = None
    value: Annotated[float | None, _col("DOUBLE", "the score; null for an error, or where there is none yet")] = None
    answer: Annotated[str | None, _col("VARCHAR", "the answer extracted from the completion")] = None
    reason: Annotated[str | None, _col("VARCHAR", "why, in words")] = None
    detail: Annotated[str | None, _col("VARCHAR", "anything else, as JSON")] = None
    supersedes: Annotated[
        int | None, _col("BIGINT", "score this one replaces, verified again; that one stays and is not counted")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Row):
    """Keep or drop, with the reason. A filter never deletes: it writes this row."""

    TABLE: ClassVar[str] = "decisions"
    ID: ClassVar[str | None] = "decision_id"

    decision_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    subject_kind: Annotated[str, _col("VARCHAR", "'rollout', or 'policy' for a gate")] = "rollout"
    subject_id: Annotated[int, _col("BIGINT", "id of the subject")]
    decider: Annotated[str, _col("VARCHAR", "label of the filter or gate")] = ""
    keep: Annotated[bool, _col("BOOLEAN", "kept (a gate: promoted)")]
    action: Annotated[str | None, _col("VARCHAR", "a gate's 'promote', 'keep', 'roll_back' or 'stop'")] = None
    weight: Annotated[float | None, _col("DOUBLE", "weight of a kept subject; null = 1")] = None
    reason: Annotated[str | None, _col("VARCHAR", "why")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Row):
    """One training example: an SFT row, a preference pair, or one member of a group."""

    TABLE: ClassVar[str] = "examples"
    ID: ClassVar[str | None] = "example_id"

    example_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    kind: Annotated[str, _col("VARCHAR", "'sft', 'pair' or 'group'")]
    builder: Annotated[str, _col("VARCHAR", "label of the stage that built it")] = ""
    problem_id: Annotated[int | None, _col("BIGINT", "problem it comes from")] = None
    prompt: Annotated[str, _col("VARCHAR", "the prompt the loss uses")]
    completion: Annotated[str | None, _col("VARCHAR", "text trained on (sft, group)")] = None
    chosen: Annotated[str | None, _col("VARCHAR", "preferred completion (pair)")] = None
    rejected: Annotated[str | None, _col("VARCHAR", "the other completion (pair)")] = None
    rollout_id: Annotated[int | None, _col("BIGINT", "rollout of `completion` or `chosen`")] = None
    rejected_rollout_id: Annotated[int | None, _col("BIGINT", "rollout of `rejected`")] = None
    sources: Annotated[list[int], _col("BIGINT[]", "further rollouts it was made from")] = dataclasses.field(
        default_factory=list
    )
    group_id: Annotated[int | None, _col("BIGINT", "group of a 'group' example")] = None
    reward: Annotated[
        float | None,
        _col(
            "DOUBLE", "reward of a 'group' example, score of a pair's `chosen`; null = not scored, or a demonstration"
        ),
    ] = None
    weight: Annotated[float | None, _col("DOUBLE", "weight in the loss; null = 1")] = None
    margin: Annotated[float | None, _col("DOUBLE", "score of chosen minus score of rejected")] = None
    loss_spans: Annotated[
        list[int] | None, _col("INTEGER[]", "character spans start,end,... the loss covers; null = all")
    ] = None
    stratum: Annotated[
        int | None, _col("INTEGER", "which members of its group it is compared with: those of the same number")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Row):
    """One checkpoint: where it lies, what it came from, and whether it is the champion."""

    TABLE: ClassVar[str] = "policies"
    ID: ClassVar[str | None] = "policy_id"

    policy_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    name: Annotated[str, _col("VARCHAR", "`<run>/r<round>`, of a reward model `<run>/r<round>/<stage's name>`")] = ""
    status: Annotated[
        str, _col("VARCHAR", "'candidate', 'champion', 'retired' (was champion), 'rejected', or 'scorer'")
    ]
    kind: Annotated[
        str, _col("VARCHAR", "'base', 'full' or 'lora' (merged adapters count as full), or 'reward': a reward model")
    ]
    parent_policy_id: Annotated[int | None, _col("BIGINT", "policy training started from")] = None
    reference_policy_id: Annotated[int | None, _col("BIGINT", "reference policy of the objective, if any")] = None
    path: Annotated[str, _col("VARCHAR", "checkpoint directory, relative to the lake unless absolute")]
    content_hash: Annotated[str, _col("VARCHAR", "hash of the checkpoint's files")]
    objective: Annotated[str | None, _col("VARCHAR", "objective it was trained with")] = None
    examples: Annotated[int | None, _col("BIGINT", "examples it was trained on")] = None
    steps: Annotated[int | None, _col("BIGINT", "optimiser steps")] = None
    loss: Annotated[float | None, _col("DOUBLE", "mean loss over the last tenth of the steps")] = None
    detail: Annotated[
        str | None,
        _col("VARCHAR", "further metrics; of a policy whose tokens a reward model scored, `reward_policy_id`; as JSON"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyExample(Row):
    """Which examples made a policy."""

    TABLE: ClassVar[str] = "policy_examples"

    policy_id: Annotated[int, _col("BIGINT", "the policy")] = 0
    example_id: Annotated[int, _col("BIGINT", "an example it was trained on")]
    share: Annotated[float | None, _col("DOUBLE", "weight of the example in the training mix; null = 1")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMetric(Row):
    """One number of one optimiser step."""

    TABLE: ClassVar[str] = "train_metrics"

    policy_id: Annotated[int, _col("BIGINT", "the policy that was trained")] = 0
    step: Annotated[int, _col("INTEGER", "optimiser step, from 1")] = 0
    name: Annotated[str, _col("VARCHAR", "'loss', 'lr', 'grad_norm', 'tokens', and what the objective reports")]
    value: Annotated[float | None, _col("DOUBLE", "the value; null = no number")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(Row):
    """A versioned text put before problems: a lesson, a skill, a behaviour."""

    TABLE: ClassVar[str] = "contexts"
    ID: ClassVar[str | None] = "context_id"

    context_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    memory: Annotated[str, _col("VARCHAR", "label of the memory stage that keeps it")] = ""
    name: Annotated[str, _col("VARCHAR", "name within the library")]
    text: Annotated[str, _col("VARCHAR", "the text itself")]
    op: Annotated[str, _col("VARCHAR", "'add', 'update' or 'delete'")] = "add"
    parent_context_id: Annotated[int | None, _col("BIGINT", "the version it replaces")] = None
    sources: Annotated[list[int], _col("BIGINT[]", "rollouts it was learnt from")] = dataclasses.field(
        default_factory=list
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Row):
    """One measured number of one policy, with its sample size and interval."""

    TABLE: ClassVar[str] = "metrics"
    ID: ClassVar[str | None] = "metric_id"

    metric_id: Annotated[int, _col("BIGINT", "id, unique in the lake")] = 0
    policy_id: Annotated[int | None, _col("BIGINT", "the policy measured")] = None
    context_id: Annotated[int | None, _col("BIGINT", "the context it was measured in")] = None
    name: Annotated[str, _col("VARCHAR", "'pass@1', 'diversity', ...")]
    slice: Annotated[str, _col("VARCHAR", "'heldout', or 'heldout/<category>'")] = "heldout"
    value: Annotated[float | None, _col("DOUBLE", "the value")]
    n: Annotated[int | None, _col("BIGINT", "problems (or rollouts) it rests on")] = None
    ci_low: Annotated[float | None, _col("DOUBLE", "lower end of the 95 % interval")] = None
    ci_high: Annotated[float | None, _col("DOUBLE", "upper end of the 95 % interval")] = None
    detail: Annotated[str | None, _col("VARCHAR", "anything else, as JSON")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState(Row):
    """State a plugin carries from round to round, so that a killed run resumes with it."""

    TABLE: ClassVar[str] = "plugin_state"

    stage: Annotated[str, _col("VARCHAR", "label of the stage that owns it")]
    state_json: Annotated[str, _col("VARCHAR", "the state, as JSON")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion(Row):
    """One row per migration the lake has been through."""

    TABLE: ClassVar[str] = "schema_versions"

    version: Annotated[int, _col("INTEGER", "schema version from here on")]
    strop_version: Annotated[str, _col("VARCHAR", "version of Strop that wrote it")]


TABLES: tuple[type[Row], ...] = (
    Run,
    StageRun,
    Problem,
    Plan,
    Rollout,
    TokenLogps,
    Score,
    Decision,
    Example,
    Policy,
    PolicyExample,
    TrainMetric,
    Context,
    Metric,
    PluginState,
    SchemaVersion,
)
BY_NAME: dict[str, type[Row]] = {row.TABLE: row for row in TABLES}


_COLUMNS: dict[type[Row], tuple[Column, ...]] = {}


def columns(row: type[Row]) -> tuple[Column, ...]:
    """The columns of a table in the order they are stored: its own first, then what every row carries."""
    if row not in _COLUMNS:
        hints = get_type_hints(row, include_extras=True)
        found = []
        for field in dataclasses.fields(row):
            sql_type, doc = next(arg for arg in get_args(hints[field.name])[1:] if isinstance(arg, tuple))
            found.append(Column(field.name, sql_type, doc))
        shared = [f.name for f in dataclasses.fields(Row)]
        own = [c for c in found if c.name not in shared]
        _COLUMNS[row] = (*own, *(c for c in found if c.name in shared))
    return _COLUMNS[row]


def as_dict(row: Row) -> dict[str, Any]:
    """The row as a plain mapping, shallow (lists are not copied)."""
    return {c.name: getattr(row, c.name) for c in columns(type(row))}
