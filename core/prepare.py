"""Round 0: the problems of the tasks and the base policy, before anything is sampled."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.core.events import Event, StepResult
from strop.core.execute import PluginRef, run_plugin, task_for
from strop.core.finish import finish
from strop.core.recipe import Step, canonical_json
from strop.core.session import Session
from strop.core.steps import ref, task_seed
from strop.core.training import checkpoint_path
from strop.core.workers import Workers
from strop.storage.checkpoints import adopt, hash_directory
from strop.storage.errors import PluginError, StageError
from strop.storage.ids import digest
from strop.storage.tables import Policy, Problem, Row


def cache_dir() -> Path:
    """Where base policies are kept between runs: `$STROP_CACHE`, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STROP_CACHE") or Path(home) / "strop")


def tasks_step(session: Session, step: Step) -> StepResult:
    """Store a task's problems. Raises StageError when it has none or its splits overlap."""
    label = f"task.{step.name}"
    if session.committed(0, label):
        return session.finished_before(label, 0)
    started = time.perf_counter()
    session.emit(Event("stage_start", session.run_id, 0, label))
    run = session.stage_run(0, session.relabelled(step, label))
    task = task_for(ref(step, session), task_seed(session))
    rows = finish(task.problems(), session.stamp(run, step), allowed=(Problem,), plugin=step.plugin)
    problems = _distinct(rows["problems"], step.name)
    session.commit(
        run, counts={"problems": len(problems)}, seconds=time.perf_counter() - started, rows={"problems": problems}
    )
    return session.finished_before(label, 0, skipped=False, seconds=time.perf_counter() - started)


def _distinct(rows: list[Row], name: str) -> list[Row]:
    """The first of each problem; a problem in both splits is refused."""
    first: dict[str, Problem] = {}
    for row in rows:
        assert isinstance(row, Problem)
        if first.setdefault(row.problem_key, row).split != row.split:
            raise StageError(f"task {name!r}: a problem is both in training and held out: {row.prompt!r}")
    if not any(row.split == "train" for row in first.values()):
        raise StageError(f"task {name!r} has no training problem")
    return list(first.values())


def base_step(session: Session) -> StepResult:
    """Store the base policy, made once per content key and kept in the user's cache."""
    step = session.recipe.base
    if session.committed(0, "base"):
        return session.finished_before("base", 0)
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
    return session.finished_before("base", 0, skipped=False, seconds=time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _BaseJob:
    ref: PluginRef
    directory: Path
    seed: int


def _made(session: Session, step: Step) -> Path:
    """The base's directory: from the cache, or made now in a process of its own."""
    key = digest("base", step.plugin.name, step.plugin.mark.version, canonical_json(step.settings()))
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
        ((_, made),) = worker.run(_make, [_BaseJob(ref(step, session), work, 0)], show)
        if made != work:
            return Path(made).resolve()
        if not kept.exists():
            work.rename(kept)
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
