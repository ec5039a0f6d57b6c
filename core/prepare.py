"""Round 0: the problems of the tasks and the base policy, before anything is sampled."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strop.core.events import Event, StepResult
from strop.core.execute import PluginRef, blamed_on, ref, run_plugin, task_for
from strop.core.finish import finish
from strop.core.problems import content_key
from strop.core.recipe import TRAINS, Step, canonical_json
from strop.core.session import Session
from strop.core.steps import examination, task_seed
from strop.core.training import checkpoint_path
from strop.core.workers import Workers
from strop.storage.checkpoints import adopt, hash_directory, verify_checkpoint
from strop.storage.errors import PluginError, StageError
from strop.storage.ids import digest
from strop.storage.tables import Policy, Problem, Row


def cache_dir() -> Path:
    """Where base policies are kept between runs: `$STROP_CACHE`, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STROP_CACHE") or Path(home) / "strop")


def tasks_step(session: Session, step: Step) -> StepResult:
    """Store a task's problems. Raises StageError when it has none, or when one is both in training and held out."""
    step = replace(step, label=f"task.{step.name}")
    if session.committed(0, step.label):
        return session.skipped(step, 0)
    started = time.perf_counter()
    session.emit(Event("stage_start", session.run_id, 0, step.label))
    run = session.stage_run(0, step)
    task = task_for(ref(step, session.recipe.folder), task_seed(session))
    with blamed_on(step.plugin):
        made = list(task.problems())
    rows = finish(made, session.stamp(run, step), allowed=(Problem,), plugin=step.plugin)
    problems = distinct(rows["problems"], session.read(Problem, "true"), step.name)
    session.commit(
        run, counts={"problems": len(problems)}, seconds=time.perf_counter() - started, rows={"problems": problems}
    )
    return session.finished(step, 0, started)


def distinct(rows: Sequence[Row], others: Sequence[Problem], name: str) -> list[Row]:
    """The first of each problem. Raises StageError for one that is in both splits, here or among `others`."""
    first: dict[str, Problem] = {}
    elsewhere = {content_key(problem): problem for problem in others}
    for row in rows:
        assert isinstance(row, Problem)
        if first.setdefault(row.problem_key, row).split != row.split:
            raise StageError(f"task {name!r}: a problem is both in training and held out: {row.prompt!r}")
        other = elsewhere.get(content_key(row), row)
        if other.split != row.split:
            raise StageError(
                f"tasks {other.task!r} and {name!r}: a problem is held out in one and in training in the other, "
                f"take it out of one of them: {row.prompt!r}"
            )
    if not any(row.split == "train" for row in first.values()):
        raise StageError(f"task {name!r} has no training problem")
    return list(first.values())


def check_heldout(session: Session) -> None:
    """Raises StageError when the recipe examines policies and has nothing to examine them on."""
    if session.recipe.examine and not examination(session):
        names = ", ".join(task.name for task in session.recipe.tasks)
        raise StageError(
            f"the recipe evaluates, and no task ({names}) has a held-out problem: give one of them some in its "
            "settings, or leave `evaluate` and `gate` out"
        )


def base_step(session: Session) -> StepResult:
    """Store the base policy, made once per content key and kept in the user's cache."""
    step = session.recipe.base
    if session.committed(0, "base"):
        check_checkpoints(session)
        return session.skipped(step, 0)
    started = time.perf_counter()
    session.emit(Event("stage_start", session.run_id, 0, "base"))
    run = session.stage_run(0, step)
    made = _made(session, step)
    if made.is_relative_to(cache_dir().resolve()):
        copy = session.lake.root / "work" / run.key
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made, copy)
        path, content_hash = adopt(session.lake.root, copy)
    else:
        path, content_hash = checkpoint_path(session, made), hash_directory(made)
    policy = Policy(
        run_id=session.run_id,
        round=0,
        stage_run_id=run.stage_run_id,
        policy_id=run.stage_run_id << 20,
        name=f"{session.run_id}/r0",
        status="champion",
        kind="base",
        path=str(path),
        content_hash=content_hash,
    )
    session.commit(run, counts={"policies": 1}, seconds=time.perf_counter() - started, rows={"policies": [policy]})
    return session.finished(step, 0, started)


def check_checkpoints(session: Session) -> None:
    """Raises LakeError when a policy that the run may still use is not what it has used so far.

    That is the champion, what a training may start from or refer to, and whatever the lake itself only refers to.
    """
    policies = session.policies()
    used = {policies[0].policy_id: "base", policies[-1].policy_id: "previous"}
    configs = [step.config for step in session.recipe.round if step.kind in TRAINS]
    wanted = {getattr(config, name) for config in configs for name in ("init_from", "reference")}
    for policy in policies:
        of_use = policy.status == "champion" or used.get(policy.policy_id) in wanted
        if of_use or Path(policy.path).is_absolute():
            verify_checkpoint(session.directory(policy), policy.content_hash)


@dataclass(frozen=True, slots=True)
class _BaseJob:
    ref: PluginRef
    directory: Path
    seed: int


def _made(session: Session, step: Step) -> Path:
    """The base's directory: from the cache, or made now in a process of its own."""
    local = (Path(step.plugin.origin).read_bytes(),) if step.plugin.is_local else ()
    key = digest("base", step.plugin.name, step.plugin.mark.version, canonical_json(step.settings()), *local)
    kept = cache_dir().resolve() / "base" / key
    if (kept / "config.json").is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="making-", dir=kept.parent))
    worker = Workers(1, session.lake.root / "logs" / session.run_id / "base", threads=session.cores)

    def show(_: int, value: tuple[str, int, int]) -> None:
        what, done, total = value
        session.emit(Event("progress", session.run_id, 0, "base", done, total, detail={"what": what}))

    try:
        ((_, made),) = worker.run(_make, [_BaseJob(ref(step, session.recipe.folder), work, 0)], show)
        if made != work:
            return Path(made).resolve()
        try:
            work.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another run made the same one meanwhile
                raise
        return kept
    finally:
        worker.release()
        shutil.rmtree(work, ignore_errors=True)


def _make(job: _BaseJob, report: Callable[[Any], None]) -> Path:
    plugin, config = job.ref.load()
    handles = {
        "directory": job.directory,
        "seed": job.seed,
        "progress": lambda what, done, total: report((what, done, total)),
    }
    made = run_plugin(plugin, config, handles)
    if not isinstance(made, Path):
        raise PluginError(f"base plugin {job.ref.use!r} must return the Path of a checkpoint, it returned {made!r}")
    return made
