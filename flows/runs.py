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

RUNS = "SELECT run_id, recipe, seed, created_at FROM runs ORDER BY created_at, run_id"
STAGES = """
SELECT run_id, round, stage, count(DISTINCT shard) AS done, max(shards) AS shards,
       min(started_at) AS started, max(started_at + to_microseconds(CAST(seconds * 1e6 AS BIGINT))) AS ended,
       sum(tokens) AS tokens
FROM stage_runs GROUP BY run_id, round, stage ORDER BY ended
"""
METRICS = """
SELECT run_id, round, name, value, ci_low, ci_high FROM metrics WHERE slice = 'heldout' AND context_id IS NULL
ORDER BY metric_id
"""
KEPT = """
SELECT run_id, round, count(*) FILTER (kept) AS kept, count(*) AS judged
FROM (SELECT run_id, round, subject_id, bool_and(keep) AS kept FROM decisions
      WHERE subject_kind = 'rollout' GROUP BY ALL)
GROUP BY run_id, round
"""
GATES = "SELECT run_id, round, action, reason FROM decisions WHERE subject_kind = 'policy' ORDER BY decision_id"
POLICIES = "SELECT run_id, round, name, status FROM policies ORDER BY policy_id"


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
    rounds: dict[int, Round] = field(default_factory=dict)
    driver: dict[str, Any] | None = None
    """pid, host and since of the live process that drives it; None = nobody does."""

    @property
    def round(self) -> int:
        """The last round with something committed."""
        return max(self.rounds, default=0)


def states(lake: Path) -> list[RunState]:
    """Every run of the lake, oldest first. Raises LakeError."""
    from strop.storage.console import open_console

    with open_console(lake) as console:
        found = read_states(console)
    for state in found:
        state.driver = driver(lake, state.run_id)
    return found


def read_states(console: Queryable) -> list[RunState]:
    """Every run the console sees, oldest first; without drivers."""
    runs = {r[0]: RunState(r[0], r[1], r[2], r[3]) for r in console.query(RUNS).rows}

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
    for run_id, round, name, value, low, high in console.query(METRICS).rows:
        at(run_id, round).metrics[name] = (value, low, high)
    for run_id, round, kept, judged in console.query(KEPT).rows:
        at(run_id, round).kept, at(run_id, round).judged = kept, judged
    for run_id, round, action, reason in console.query(GATES).rows:
        at(run_id, round).action, at(run_id, round).reason = action, reason
    for run_id, round, name, status in console.query(POLICIES).rows:
        at(run_id, round).policy = name
        if status == "champion":
            runs[run_id].champion = name
    return list(runs.values())


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
