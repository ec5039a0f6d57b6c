"""A run in progress: its recipe, lake, ledger and workers, and how one shard of work becomes one commit."""

from __future__ import annotations

import datetime
import json
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from strop.core.events import Event, OnEvent, StepResult
from strop.core.execute import WORKER_HANDLES, Output
from strop.core.finish import Stamp
from strop.core.recipe import Recipe, Step, canonical_json
from strop.core.running import Running
from strop.core.seeds import derive
from strop.core.standing import standing
from strop.core.visible import Ledger, made_by, places, read_rows, reused, rows_sql, stage_of
from strop.core.workers import Workers
from strop.storage.errors import StageError
from strop.storage.ids import digest, shard_number, stage_run_of
from strop.storage.lake import Lake
from strop.storage.tables import REWARD, Decision, PluginState, Policy, Row, StageRun

if TYPE_CHECKING:
    from strop.core.reuse import Reusing

R = TypeVar("R", bound=Row)

READS = {
    "generate": {"select", "memory"},
    "verify": {"generate", "verify"},
    "filter": {"generate", "verify", "filter"},
    "synthesize": {"generate", "verify"},
    "build": {"generate", "verify", "filter"},
    "train": {"build"},
    "train_reward": {"build"},
    "evaluate": {"generate", "verify"},
    "gate": {"train", "evaluate"},
    "control": {"generate", "verify", "evaluate"},
    "memory": {"generate", "verify"},
}
"""Kinds of stage whose rows of the same round a kind reads; their keys are part of its own."""


@dataclass(slots=True)
class Session:
    """Everything the steps of one run share."""

    recipe: Recipe
    lake: Lake
    run_id: str
    seed: int
    workers: Workers
    """Have the engine."""
    verifiers: Workers
    """For verifiers that need no engine, each with a shard."""
    judges: Workers
    """One process, for verifiers that judge one rollout at a time: it has as many judge at once as `verifiers` are."""
    cores: int
    emit: OnEvent
    ledger: Ledger = field(default_factory=dict)
    """(round, label) -> shard -> its committed row."""
    reusing: Reusing | None = None
    """What a rerun takes from other runs."""
    running: Running = field(init=False)
    _cache: dict[tuple[Any, ...], list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.running = Running(self)

    def read(
        self,
        row: type[R],
        where: str,
        params: Sequence[object] = (),
        without: Iterable[str] = (),
        *,
        keep: bool = True,
    ) -> list[R]:
        """Rows the run sees (see `visible`), oldest first; kept until a commit touches their table, if `keep`.

        By round, stage, shard and place in the shard: the order of ids would depend on the run's name.
        """
        key = (row.TABLE, where, tuple(map(str, params)), tuple(sorted(without)))
        if key in self._cache:
            return list(self._cache[key])  # a plugin may sort or empty what it is handed
        found = read_rows(self.lake, row, self.rows_sql(row.TABLE), where, params, without)
        order = places(self.ledger)
        found.sort(key=lambda r: order.get(r.stage_run_id, (r.round, "", 0)))
        if keep:
            self._cache[key] = list(found)
        return found

    def forget(self, tables: Iterable[str]) -> None:
        """Drop what was read from these tables."""
        for key in [key for key in self._cache if key[0] in set(tables)]:
            del self._cache[key]

    def rows_sql(self, table: str, *, superseded: bool = False) -> tuple[str, list[object]]:
        """A query for the rows of a table that the run sees, and its parameters."""
        return rows_sql(table, self.run_id, self.ledger, superseded=superseded)

    def shards(self, round: int, labels: Iterable[str]) -> list[StageRun]:
        """Committed shards of these stages in a round, with those that verified something of them again."""
        wanted = set(labels)
        found = [by for (at, label), by in self.ledger.items() if at == round and stage_of(label) in wanted]
        return [run for by in found for run in by.values()]

    def policies(self) -> list[Policy]:
        """The run's policies, oldest first. What another run trained has the status this run's own gate gave it."""
        found = self.read(Policy, f"kind <> '{REWARD}'")
        if not reused(self.ledger):
            return found
        gated = any(step.kind == "gate" for step in self.recipe.round)
        status = standing(found, self.read(Decision, "subject_kind = 'policy'"), gated=gated)
        return [replace(policy, status=status[policy.policy_id]) for policy in found]

    def reward_models(self) -> list[Policy]:
        """The run's reward models, oldest first: rows of `policies` that are nobody's candidate."""
        return self.read(Policy, f"kind = '{REWARD}'")

    def policy(self, policy_id: int) -> Policy:
        """The policy of that id, which may be another run's: re-used rollouts name the one that wrote them."""
        known = next((p for p in self.policies() if p.policy_id == policy_id), None)
        return known or self.lake.rows(Policy, "policy_id = ?", [policy_id])[0]

    def untrained(self, round: int) -> bool:
        """Whether the round's training is done and, for want of examples, made no policy."""
        done = any(step.kind == "train" and self.committed(round, step.label) for step in self.recipe.round)
        return done and not any(policy.round == round for policy in self.policies())

    def champion(self) -> Policy:
        """The policy that generates. There is always one once round 0 has its base."""
        return next(p for p in self.policies() if p.status == "champion")

    def candidate(self, round: int) -> Policy:
        """The policy this round made, else the champion."""
        return next((p for p in self.policies() if p.round == round), None) or self.champion()

    def policy_of(self, round: int, step: Step) -> Policy:
        """Held-out work looks at the round's candidate, everything else at the champion."""
        return self.candidate(round) if step.split == "heldout" else self.champion()

    def directory(self, policy: Policy) -> Path:
        """Where a policy's checkpoint lies on this machine."""
        return self.lake.checkpoint(policy)

    def upstream(self, round: int, step: Step, policy: Policy | None = None) -> list[str]:
        """Keys of the stage runs a step reads, that of the policy it runs or starts from included, sorted."""
        labels = {s.label for s in self.recipe.round if s.kind in READS.get(step.kind, set()) and s.split == step.split}
        if step.kind in {"evaluate", "gate", "control"}:
            labels |= {s.label for s in self.recipe.round if s.split == "heldout" or s.kind == "evaluate"}
        keys = {run.key for run in self.shards(round, labels) if run.stage != step.label}
        if policy is not None:
            keys |= self.keys_of(policy)
        return sorted(keys)

    def keys_of(self, policy: Policy) -> set[str]:
        """Keys of the stage run that made a policy."""
        return {r.key for by in self.ledger.values() for r in by.values() if made_by(r) == policy.stage_run_id}

    def step_seed(self, round: int, step: Step) -> int:
        """The seed handed to a step's plugin."""
        return derive(self.seed, "stage", round, step.label)

    def stage_run(
        self, round: int, step: Step, shard: int = 0, shards: int = 1, upstream: Sequence[str] = ()
    ) -> StageRun:
        """The ledger row of a shard, before the work: its key decides whether there is any to do."""
        settings = canonical_json(step.settings())
        version = step.plugin.mark.version
        seed = self.step_seed(round, step)
        key = digest(
            self.run_id, round, step.label, shard, shards, step.plugin.name, version, settings, list(upstream), seed
        )
        return StageRun(
            run_id=self.run_id,
            round=round,
            stage_run_id=shard_number(self.run_id, round, step.label, shard),
            key=key,
            stage=step.label,
            kind=step.kind,
            shard=shard,
            shards=shards,
            plugin=step.plugin.name,
            plugin_version=version,
            config_json=settings,
            upstream=list(upstream),
            seed=seed,
            rows_json="{}",
        )

    def committed(self, round: int, label: str) -> bool:
        """Whether every shard of the step is in the ledger."""
        found = self.ledger.get((round, label), {})
        return bool(found) and len(found) == next(iter(found.values())).shards

    def stamp(self, run: StageRun, step: Step, **more: Any) -> Stamp:
        """Where the rows of that shard belong."""
        return Stamp(self.run_id, run.round, run.stage_run_id, step.name, split=step.split, **more)

    def commit(
        self,
        run: StageRun,
        *,
        counts: dict[str, int],
        seconds: float,
        tokens: int = 0,
        files: dict[str, list[Path]] | None = None,
        rows: dict[str, list[Row]] | None = None,
        policy_status: dict[int, str] | None = None,
    ) -> None:
        """One shard, one transaction. The status of another run's policy is that run's to set, and is left."""
        now = datetime.datetime.now(datetime.UTC)
        run = replace(
            run,
            rows_json=canonical_json(counts),
            tokens=tokens or None,
            seconds=round(seconds, 4),
            started_at=now - datetime.timedelta(seconds=seconds),
            host=socket.gethostname(),
        )
        foreign = reused(self.ledger)
        own = {i: status for i, status in (policy_status or {}).items() if stage_run_of(i) not in foreign}
        self.lake.commit(
            run,
            files=files or {},
            rows=rows or {},
            policy_status=own,
            message=f"{self.run_id} round {run.round} {run.stage} {run.shard + 1}/{run.shards}",
        )
        self.ledger.setdefault((run.round, run.stage), {})[run.shard] = run
        if run.reuses is not None:
            self._cache.clear()
        self.forget([*(files or {}), *(rows or {}), "stage_runs", *(["policies"] if policy_status else [])])

    def pool(self, step: Step) -> Workers:
        """The processes a step's shards are done by: verifiers have their own, beside those of an engine."""
        mark = step.plugin.mark
        if step.kind != "verify" or WORKER_HANDLES & set(mark.handles):
            return self.workers
        return self.judges if mark.each else self.verifiers

    def release(self) -> None:
        """End everything that is at work, and every process."""
        self.running.abandon()
        for pool in (self.workers, self.verifiers, self.judges):
            pool.release()

    def commit_output(self, run: StageRun, step: Step, output: Output) -> None:
        """Commit what a shard's call has left."""
        rows: dict[str, list[Row]] = {}
        if output.state is not None:
            rows["plugin_state"] = [self.state_row(run, step, output.state)]
        self.commit(
            run, counts=output.counts, seconds=output.seconds, tokens=output.tokens, files=output.files, rows=rows
        )

    def state_row(self, run: StageRun, step: Step, state: dict[str, Any]) -> Row:
        """A plugin's state as a row. Raises StageError when it does not survive JSON."""
        try:
            text = canonical_json(state)
        except (TypeError, ValueError) as error:
            raise StageError(f"{step.label}: the state returned must be plain JSON values: {error}") from error
        return PluginState(
            run_id=self.run_id, round=run.round, stage_run_id=run.stage_run_id, stage=step.label, state_json=text
        )

    def state_of(self, step: Step, round: int) -> dict[str, Any] | None:
        """What the step's plugin returned as state in the last round before this one."""
        rows = self.read(PluginState, "stage = ? AND round < ?", [step.label, round])
        return json.loads(max(rows, key=lambda r: r.round).state_json) if rows else None

    def out(self, run: StageRun) -> Path:
        """Where a shard's worker writes its files before they are committed; a retry overwrites what a kill left."""
        return self.lake.staging / run.key

    def skipped(self, step: Step, round: int) -> StepResult:
        """The result of a step that was committed before, from the ledger."""
        return self._result(step.label, round, 0.0, skipped=True)

    def nothing(self, round: int, step: Step) -> StepResult:
        """Commit a step that has nothing to do in this round, without calling its plugin."""
        run = self.stage_run(round, step, upstream=self.upstream(round, step))
        self.commit(run, counts={}, seconds=0.0)
        return self._result(step.label, round, 0.0, skipped=False)

    def finished(self, step: Step, round: int, started: float, ended: float = 0.0) -> StepResult:
        """The result of a step that has been committed now, or at `ended`."""
        return self._result(step.label, round, (ended or time.perf_counter()) - started, skipped=False)

    def _result(self, label: str, round: int, seconds: float, *, skipped: bool) -> StepResult:
        counts: dict[str, int] = {}
        tokens = 0
        for run in self.ledger.get((round, label), {}).values():
            tokens += run.tokens or 0
            for table, n in json.loads(run.rows_json).items():
                counts[table] = counts.get(table, 0) + n
        kind = "stage_skipped" if skipped else "stage_done"
        self.emit(Event(kind, self.run_id, round, label, tokens=tokens, seconds=seconds, detail={"rows": counts}))
        return StepResult(label, round, counts, tokens, seconds, skipped)
