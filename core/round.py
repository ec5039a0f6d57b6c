"""The loop itself: round 0 prepares and examines the base, every further round runs the recipe's stages in order.

No Prefect here: `call` is how a step is invoked, and `flows` passes one that makes each step a task run. The lake's
ledger is the truth: whatever is committed is skipped, so the same call resumes a killed run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from strop.core.binding import bind
from strop.core.control import control_step, overrides_for
from strop.core.events import Event, OnEvent, RunSummary, StepResult
from strop.core.failures import what_failed
from strop.core.gating import gate_step, stopped
from strop.core.prepare import base_step, check_checkpoints, check_heldout, tasks_step
from strop.core.recipe import TRAINS, Recipe, Step, default_run_id
from strop.core.reuse import PROBLEMS, Reuse, ledger_of, reusing
from strop.core.reuse_step import reuse_step
from strop.core.session import Session
from strop.core.steps import plugin_step
from strop.core.training import train_step
from strop.core.verifying import followers, generate_step, verify_step
from strop.core.workers import PRELOAD, Workers
from strop.storage.errors import StageError
from strop.storage.lake import Lake, open_lake
from strop.storage.locks import run_lock
from strop.storage.tables import Metric

__all__ = ["Event", "OnEvent", "RunSummary", "StepResult", "run_loop"]

CallStep = Callable[[str, int, Callable[[], StepResult]], StepResult]
KINDS = {"train": train_step, "train_reward": train_step, "gate": gate_step, "control": control_step}
SHARDED = {"generate": generate_step, "verify": verify_step}
"""Kinds whose shards the verify stages behind them may begin on."""


def named(call: CallStep, label: str, round: int, step: Callable[[], StepResult]) -> StepResult:
    """Invoke a step; a disk that is full, or a file that cannot be used, comes out as a StageError that names it."""
    try:
        return call(label, round, step)
    except OSError as error:
        raise StageError(f"round {round}, {label}: {what_failed(error)}") from error


def plain_call(label: str, round: int, step: Callable[[], StepResult]) -> StepResult:
    """Invoke a step directly."""
    return step()


def run_loop(
    recipe: Recipe,
    *,
    lake: Path,
    run_id: str | None = None,
    rounds: int | None = None,
    on_event: OnEvent = lambda event: None,
    call: CallStep = plain_call,
    reuse: Reuse | None = None,
    until: str | None = None,
) -> RunSummary:
    """Run the recipe, or go on with the run where it stands.

    `reuse` makes a new run a rerun (see `rerun.prepare`, which checks it); `until` is the last stage of a round to run.

    Raises StropError: another live process has this run, the recipe differs from the one the run was started with,
    a stage failed. Whatever was committed stays, and the same call resumes.
    """
    started = time.perf_counter()
    run_id = run_id or default_run_id(recipe)
    rounds = recipe.rounds if rounds is None else rounds
    with open_lake(lake, create=True) as opened, run_lock(opened.root, run_id):
        opened.verify(run_id)
        session = session_of(recipe, opened, run_id, on_event)
        labels = [step.label for step in recipe.round]
        call = partial(named, call)
        wanted = labels if until is None else labels[: labels.index(until) + 1]
        try:
            bound = bind(session, reuse)
            session.reusing = reusing(opened, recipe, bound) if bound else None
            on_event(Event("run_start", run_id, total=rounds))
            _prepare(session, wanted, call)
            stop = stopped(session)
            for number in range(1, rounds + 1):
                if stop is not None and not _has_begun(session, number):
                    break
                _round(session, number, wanted, call)
                stop = stopped(session)
            champion = session.champion()
            summary = RunSummary(
                run_id,
                _complete(session, wanted),
                champion.name,
                champion.content_hash,
                stop,
                time.perf_counter() - started,
            )
            on_event(
                Event("run_done", run_id, summary.rounds, seconds=summary.seconds, detail=dataclasses.asdict(summary))
            )
            return summary
        finally:
            session.release()


def _prepare(session: Session, wanted: Sequence[str], call: CallStep) -> None:
    started = time.perf_counter()
    if session.reusing is not None:
        for label in (*(f"task.{task.name}" for task in session.recipe.tasks), PROBLEMS, "base"):
            call(label, 0, partial(reuse_step, session, 0, label, session.reusing.shards(0, label) or {}))
        if any(s.label in wanted and (s.kind in TRAINS or s.split == "heldout") for s in session.recipe.round):
            check_checkpoints(session)
    else:
        for task in session.recipe.tasks:
            call(f"task.{task.name}", 0, partial(tasks_step, session, task))
        check_heldout(session)
        call("base", 0, partial(base_step, session))
    examine = [step for step in session.recipe.examine if step.label in wanted]
    for step in examine:
        call(step.label, 0, partial(_step, session, 0, step, examine))
    _emit_round(session, 0, started, examined=bool(examine))


def _round(session: Session, number: int, wanted: Sequence[str], call: CallStep) -> None:
    started = time.perf_counter()
    plain = session.recipe
    session.recipe = plain.override(overrides_for(session, number))
    try:
        steps = [step for step in session.recipe.round if step.label in wanted]
        for step in steps:
            call(step.label, number, partial(_step, session, number, step, steps))
    finally:
        session.recipe = plain
    _emit_round(session, number, started, examined=any(s.label in wanted for s in session.recipe.examine))


def _step(session: Session, number: int, step: Step, steps: Sequence[Step]) -> StepResult:
    shards = session.reusing.shards(number, step.label) if session.reusing else None
    if shards is not None:
        return reuse_step(session, number, step.label, shards)
    if step.kind in SHARDED:
        return SHARDED[step.kind](session, number, step, followers(steps, step))
    return KINDS.get(step.kind, plugin_step)(session, number, step)


def _has_begun(session: Session, number: int) -> bool:
    return any(at == number for at, _ in session.ledger)


def _complete(session: Session, wanted: Sequence[str]) -> int:
    """Rounds that are complete; they are run in order, so none after the first that is not."""
    number = 0
    while all(session.committed(number + 1, label) for label in wanted):
        number += 1
    return number


def _emit_round(session: Session, number: int, started: float, *, examined: bool) -> None:
    """Tell the watcher how the round's policy fares."""
    if examined:
        policy = session.candidate(number)
        metrics = session.read(Metric, "round = ? AND policy_id = ? AND slice = 'heldout'", [number, policy.policy_id])
        detail = {
            "metrics": {m.name: [m.value, m.ci_low, m.ci_high, m.n] for m in metrics},
            "policy": policy.name,
            "status": policy.status,
        }
    else:
        detail = {}
    session.emit(Event("round_done", session.run_id, number, seconds=time.perf_counter() - started, detail=detail))


def session_of(recipe: Recipe, lake: Lake, run_id: str, on_event: OnEvent) -> Session:
    """A session on a run as the ledger has it; whoever makes it holds the run's lock and releases the workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = Path("/dev/nvidia0").exists()
    alone = gpu or recipe.engine.plugin.mark.alone
    count = recipe.workers if isinstance(recipe.workers, int) else (1 if alone else cores)
    heavy = any(step.kind in TRAINS for step in recipe.round) or recipe.engine.plugin.name == "hf"
    preload = PRELOAD if heavy else ()
    logs = lake.root / "logs" / run_id
    workers = Workers(count, logs, threads=max(1, cores // count), preload=preload)
    judging = max(1, cores - 1) if gpu else cores  # whoever feeds a GPU needs a core
    verifiers = Workers(judging, logs / "verify", preload=preload)
    judges = Workers(1, logs / "judge", preload=preload)
    ledger = ledger_of(lake, run_id)
    return Session(recipe, lake, run_id, recipe.seed, workers, verifiers, judges, cores, on_event, ledger)
