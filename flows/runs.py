"""The runs of a lake as `strop status` and the end of a run show them: rounds, champions, and who drives what.

Reads through the console (core DuckDB on pinned Parquet), so that it is quick and a running writer is never disturbed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from strop.storage.place import place_of, run_lock_name

if TYPE_CHECKING:
    from strop.core.recipe import Recipe

RUNS = "SELECT * FROM runs ORDER BY created_at, run_id"
SEEN = """(
SELECT t.* REPLACE (s.run_id AS run_id, s.round AS round) FROM {table} t JOIN (
    SELECT coalesce(reuses, stage_run_id) AS made_by, run_id, min(round) AS round FROM stage_runs GROUP BY ALL
) s ON s.made_by = t.stage_run_id)"""
"""The rows of each run, those it re-uses included; only asked for where a run of the lake re-uses any."""
STAGES = """
SELECT run_id, round, stage, count(DISTINCT shard) AS done, max(shards) AS shards,
       min(started_at) AS started, max(started_at + to_microseconds(CAST(seconds * 1e6 AS BIGINT))) AS ended,
       sum(tokens) AS tokens
FROM stage_runs GROUP BY run_id, round, stage ORDER BY ended
"""
METRICS = """
SELECT run_id, round, name, value, ci_low, ci_high FROM {metrics} WHERE slice = 'heldout' AND context_id IS NULL
ORDER BY metric_id
"""
KEPT = """
SELECT run_id, round, count(*) FILTER (kept) AS kept, count(*) AS judged
FROM (SELECT run_id, round, subject_id, bool_and(keep) AS kept FROM {decisions}
      WHERE subject_kind = 'rollout' GROUP BY ALL)
GROUP BY run_id, round
"""
GATES = """
SELECT run_id, round, action, reason, subject_id FROM {decisions} WHERE subject_kind = 'policy' ORDER BY decision_id
"""
POLICIES = """
SELECT run_id, round, name, status, policy_id FROM {policies} WHERE kind <> 'reward' ORDER BY round, policy_id
"""


PAUSE_S = 10.0
"""A longer gap between two stages is an interruption; a shorter one is commits and workers starting."""


class Queryable(Protocol):
    """Anything with the console's `query`."""

    def query(self, sql: str) -> Any:
        """A result with `columns` and `rows`."""


@dataclass(slots=True)
class Round:
    """One round of a run as it stands."""

    round: int
    metrics: dict[str, tuple[float | None, float | None, float | None]] = field(default_factory=dict)
    """Name -> value and 95 % interval, on the held-out problems."""
    kept: int | None = None
    judged: int | None = None
    action: str | None = None
    reason: str | None = None
    policy: str | None = None
    seconds: float = 0.0
    tokens: int = 0
    stages: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Stage -> shards committed, shards."""


@dataclass(slots=True)
class RunState:
    """One run as the lake has it."""

    run_id: str
    recipe: str = ""
    seed: int = 0
    created_at: Any = None
    stage: str | None = None
    """The last stage that was committed."""
    at: Any = None
    champion: str | None = None
    reuses: dict[str, Any] | None = None
    """A rerun: `from`, its first own stage, and `rounds`, the source rounds of each of its rounds."""
    rounds: dict[int, Round] = field(default_factory=dict)
    driver: dict[str, Any] | None = None
    """pid, host and since of the live process that drives it; None = nobody does."""

    @property
    def round(self) -> int:
        """The last round with something committed."""
        return max(self.rounds, default=0)


def states(lake: Path, *, snapshot: int | None = None) -> list[RunState]:
    """Every run of the lake, oldest first, as it stood at a snapshot or stands now. Raises LakeError."""
    from strop.storage.console import open_console

    with open_console(lake, snapshot=snapshot) as console:
        found = read_states(console)
    for state in found if snapshot is None else ():
        state.driver = driver(lake, state.run_id)
    return found


def read_states(console: Queryable) -> list[RunState]:
    """Every run the console sees, oldest first; without drivers."""
    result = console.query(RUNS)
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
    runs = {r["run_id"]: RunState(r["run_id"], r["recipe"], r["seed"], r["created_at"]) for r in rows}
    for found_run in rows:
        if found_run.get("parent_run_id") is not None:  # a lake of an older schema has no such column
            runs[found_run["run_id"]].reuses = json.loads(found_run["sources_json"])
    any_reused = any(run.reuses for run in runs.values())
    tables = {t: SEEN.format(table=t) if any_reused else t for t in ("metrics", "decisions", "policies")}

    def at(run_id: str, round: int) -> Round:
        run = runs.setdefault(run_id, RunState(run_id))
        return run.rounds.setdefault(round, Round(round))

    spans: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for run_id, round, stage, done, shards, started, ended, tokens in console.query(STAGES).rows:
        row = at(run_id, round)
        row.stages[stage] = (done, shards)
        if started and ended:
            spans.setdefault((run_id, round), []).append((started.timestamp(), ended.timestamp()))
        row.tokens += tokens or 0
        runs[run_id].stage, runs[run_id].at = stage, ended
    for (run_id, round), found in spans.items():
        at(run_id, round).seconds = worked(found)
    for run_id, round, name, value, low, high in console.query(METRICS.format(**tables)).rows:
        at(run_id, round).metrics[name] = (value, low, high)
    for run_id, round, kept, judged in console.query(KEPT.format(**tables)).rows:
        at(run_id, round).kept, at(run_id, round).judged = kept, judged
    promoted: set[tuple[str, int]] = set()
    for run_id, round, action, reason, subject_id in console.query(GATES.format(**tables)).rows:
        at(run_id, round).action, at(run_id, round).reason = action, reason
        if action == "promote":
            promoted.add((run_id, subject_id))
    for run_id, round, name, status, policy_id in console.query(POLICIES.format(**tables)).rows:
        at(run_id, round).policy = name
        run = runs[run_id]
        if run.reuses is None or name.startswith(f"{run_id}/"):
            champion = status == "champion"
        else:  # the status is the other run's; what this run's own gate said of the policy counts
            champion = run.champion is None or (run_id, policy_id) in promoted
        if champion:
            run.champion = name
    return list(runs.values())


def reused(state: RunState) -> str:
    """What a rerun re-uses, in words; empty for other runs."""
    if state.reuses is None:
        return ""
    pooled = [" + ".join(f"{s['run']}@{s['round']}" for s in sources) for sources in state.reuses["rounds"]]
    shown = [*pooled[:3], f"and {len(pooled) - 3} more"] if len(pooled) > 4 else pooled
    return f"{', '.join(shown)} before {state.reuses['from']}"


def worked(spans: list[tuple[float, float]]) -> float:
    """Seconds from the first start to the last end, without gaps in which the run was not going."""
    total, until = 0.0, min(start for start, _ in spans)
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until)) + (start - until if 0 < start - until < PAUSE_S else 0.0)
        until = max(until, end)
    return total


def rounds_done(lake: Path, run_id: str, recipe: Recipe) -> int:
    """How many rounds of the run are complete: every stage of the recipe with every shard committed."""
    if not place_of(lake).exists:
        return 0
    from strop.storage.console import open_console

    with open_console(lake) as console:
        run = next((s for s in read_states(console) if s.run_id == run_id), RunState(run_id))
    return complete(run, [step.label for step in recipe.round])


def complete(run: RunState, labels: list[str]) -> int:
    """Rounds from 1 on without a gap in which every one of the stages is committed."""
    done = 0
    while (row := run.rounds.get(done + 1)) is not None:
        if any(row.stages.get(label, (0, 1))[0] < row.stages.get(label, (0, 1))[1] for label in labels):
            break
        done += 1
    return done


def pass_at_most(rounds: list[Round]) -> str | None:
    """Name of the pass@k with the largest k > 1 that any of the rounds has."""
    ks = {int(m[1]) for r in rounds for name in r.metrics if (m := re.fullmatch(r"pass@(\d+)", name))} - {1}
    return f"pass@{max(ks)}" if ks else None


def driver(lake: Path, run_id: str) -> dict[str, Any] | None:
    """Who holds the run's lock, if a live process does."""
    if (place := place_of(lake)).catalog:
        from strop.storage import advisory

        return advisory.holder(place, run_lock_name(run_id))
    import fcntl

    lock = lake / "locks" / f"{run_lock_name(run_id)}.lock"
    try:
        who: dict[str, Any] = json.loads(lock.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return None
    if who.get("host") == socket.gethostname() and not _exists(int(who.get("pid", 0))):
        return None  # known without touching the lock, which a starting run may want in this moment
    try:
        with lock.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return who
    except OSError:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
