"""The loop itself: round 0 prepares and examines the base, every further round runs the recipe's stages in order.

No Prefect here: `call` is how a step is invoked, and `flows` passes one that makes each step a task run. The lake's
ledger is the truth: whatever is committed is skipped, so the same call resumes a killed run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from strop.core.binding import bind
from strop.core.control import control_step, overrides_for
from strop.core.events import Event, OnEvent, RunSummary, StepResult
from strop.core.gating import gate_step, stopped
from strop.core.prepare import base_step, check_heldout, tasks_step
from strop.core.recipe import Recipe, Step, default_run_id
from strop.core.session import Session
from strop.core.steps import plugin_step
from strop.core.training import train_step
from strop.core.workers import PRELOAD, Workers
from strop.storage.lake import Lake, open_lake
from strop.storage.locks import run_lock
from strop.storage.tables import Metric

__all__ = ["Event", "OnEvent", "RunSummary", "StepResult", "run_loop"]

CallStep = Callable[[str, int, Callable[[], StepResult]], StepResult]
KINDS = {"train": train_step, "gate": gate_step, "control": control_step}


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
) -> RunSummary:
    """Run the recipe, or go on with the run where it stands.

    Raises StropError: another live process has this run, the recipe differs from the one the run was started with,
    a stage failed. Whatever was committed stays, and the same call resumes.
    """
    started = time.perf_counter()
    run_id = run_id or default_run_id(recipe)
    rounds = recipe.rounds if rounds is None else rounds
    with open_lake(lake, create=True) as opened, run_lock(opened.root, run_id):
        opened.verify(run_id)
        session = _session(recipe, opened, run_id, on_event)
        try:
            bind(session)
            on_event(Event("run_start", run_id, total=rounds))
            _prepare(session, call)
            stop = stopped(session)
            for number in range(1, rounds + 1):
                if stop is not None and not _has_begun(session, number):
                    break
                _round(session, number, call)
                stop = stopped(session)
            champion = session.champion()
            summary = RunSummary(
                run_id,
                _complete(session),
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
            session.workers.release()


def _prepare(session: Session, call: CallStep) -> None:
    started = time.perf_counter()
    for task in session.recipe.tasks:
        call(f"task.{task.name}", 0, partial(tasks_step, session, task))
    check_heldout(session)
    call("base", 0, partial(base_step, session))
    for step in session.recipe.examine:
        call(step.label, 0, partial(_step, session, 0, step))
    _emit_round(session, 0, started)


def _round(session: Session, number: int, call: CallStep) -> None:
    started = time.perf_counter()
    plain = session.recipe
    session.recipe = plain.override(overrides_for(session, number))
    try:
        for step in session.recipe.round:
            call(step.label, number, partial(_step, session, number, step))
    finally:
        session.recipe = plain
    _emit_round(session, number, started)


def _step(session: Session, number: int, step: Step) -> StepResult:
    return KINDS.get(step.kind, plugin_step)(session, number, step)


def _has_begun(session: Session, number: int) -> bool:
    return any(at == number for at, _ in session.ledger)


def _complete(session: Session) -> int:
    """Rounds that are complete; they are run in order, so none after the first that is not."""
    number = 0
    while all(session.committed(number + 1, step.label) for step in session.recipe.round):
        number += 1
    return number


def _emit_round(session: Session, number: int, started: float) -> None:
    """Tell the watcher how the round's policy fares."""
    if session.recipe.examine:
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


def _session(recipe: Recipe, lake: Lake, run_id: str, on_event: OnEvent) -> Session:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = Path("/dev/nvidia0").exists()
    count = recipe.workers if isinstance(recipe.workers, int) else (1 if gpu else cores)
    heavy = any(step.kind == "train" for step in recipe.round) or recipe.engine.plugin.name == "hf"
    workers = Workers(
        count, lake.root / "logs" / run_id, threads=max(1, cores // count), preload=PRELOAD if heavy else ()
    )
    session = Session(recipe, lake, run_id, recipe.seed, workers, cores, on_event)
    for run in lake.committed(run_id).values():
        session.ledger.setdefault((run.round, run.stage), {})[run.shard] = run
    return session
