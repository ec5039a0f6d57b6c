"""Stages at work: their shards go to the pools, and each is committed as soon as it is done.

What a committed shard makes possible in a later stage may be done meanwhile: `run` is told of such work and begins it,
and the later stage's own `run` waits for what is left of it. An error ends nothing that is at work: those shards are
committed first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from strop.core.events import Event, StepResult
from strop.core.execute import Call, Output, execute, in_worker
from strop.core.jobs import Job, Jobs
from strop.core.recipe import Step
from strop.storage.errors import StageError, StropError
from strop.storage.tables import StageRun

if TYPE_CHECKING:
    from strop.core.session import Session


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a stage before its work."""

    step: Step
    run: StageRun
    make: Callable[[], Call]
    """Reads what the plugin is handed; called when a process is free for it."""


Meanwhile = Callable[[StageRun | None], Iterable[Shard]]
"""Shards of later stages that can be begun now that this one is committed; None = whatever can before the first."""


def nothing_meanwhile(_: StageRun | None) -> Iterable[Shard]:
    """No other stage's work is begun."""
    return ()


@dataclass(slots=True)
class _Stage:
    """A stage of which something was begun."""

    total: int
    """Rollouts expected; 0 = unknown."""
    started: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Rollouts and tokens by shard."""


class Running:
    """What of a run is at work, and what of it was begun ahead of its turn."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stages: dict[tuple[int, str], _Stage] = {}
        self._jobs = Jobs()
        self._shards: dict[Job, Shard] = {}

    def begin(self, round: int, step: Step, total: int) -> None:
        """Say that the stage is at work, once."""
        if (round, step.label) not in self._stages:
            self._stages[round, step.label] = _Stage(total)
            self._session.emit(Event("stage_start", self._session.run_id, round, step.label, total=total))

    def run(
        self,
        round: int,
        step: Step,
        shards: Sequence[Shard],
        total: int = 0,
        meanwhile: Meanwhile = nothing_meanwhile,
    ) -> StepResult:
        """Do what is not committed of the stage. Raises StageError that names the stage which failed."""
        there = self._session.ledger.get((round, step.label), {})
        if there and (cut := next(iter(there.values())).shards) != len(shards):
            raise StageError(
                f"round {round}, {step.label}: an older Strop left it half done, cut into {cut} shards where it now "
                f"has {len(shards)}; finish it with that one, or "
                f"`strop rerun {self._session.run_id} --from {step.kind}`"
            )
        todo = [shard for shard in shards if shard.run.shard not in there]
        if todo or not shards:
            self.begin(round, step, total)
        try:
            if in_worker(step.plugin):
                self._in_workers(round, step, todo, meanwhile)
            else:
                self._here(todo)
        except BaseException:
            self.abandon()
            raise
        return self.result(round, step)

    def result(self, round: int, step: Step) -> StepResult:
        """What the stage did, now that all of it is committed."""
        stage = self._stages.get((round, step.label))
        if stage is None:
            return self._session.skipped(step, round)
        return self._session.finished(step, round, stage.started, stage.ended)

    def abandon(self) -> None:
        """End what is at work."""
        self._jobs.abandon()
        self._shards.clear()

    def _here(self, todo: Sequence[Shard]) -> None:
        for shard in todo:
            try:
                self._commit(shard, execute(shard.make(), partial(self._report, shard)))
            except StageError as error:
                raise _named(shard, error) from error

    def _in_workers(self, round: int, step: Step, todo: Sequence[Shard], meanwhile: Meanwhile) -> None:
        for shard in todo:
            self._add(shard)
        for shard in meanwhile(None):
            self._add(shard)
        failed: StropError | None = None
        while any((s.run.round, s.step.label) == (round, step.label) for s in self._shards.values()) or (
            failed is not None and self._shards
        ):
            done = self._jobs.next()
            shard = self._shards.pop(done.job)
            if done.error is not None:
                failed = failed or (_named(shard, done.error) if isinstance(done.error, StageError) else done.error)
                for job in self._jobs.drop():
                    del self._shards[job]
                continue
            self._commit(shard, done.result)
            if failed is None:
                for more in meanwhile(shard.run):
                    self._add(more)
        if failed is not None:
            raise failed

    def _add(self, shard: Shard) -> None:
        """Put it to work, unless it is."""
        if any(other.run.key == shard.run.key for other in self._shards.values()):
            return
        run = shard.run
        name = f"shard {run.shard + 1} of {run.shards}" if run.shards > 1 else ""
        job = Job(self._session.pool(shard.step), execute, shard.make, name, partial(self._report, shard))
        self._shards[job] = shard
        self._jobs.add(job)

    def _commit(self, shard: Shard, output: Output) -> None:
        self._session.commit_output(shard.run, shard.step, output)
        self._stages[shard.run.round, shard.run.stage].ended = time.perf_counter()

    def _report(self, shard: Shard, value: tuple[int, int]) -> None:
        stage = self._stages[shard.run.round, shard.run.stage]
        stage.progress[shard.run.shard] = value
        done, tokens = map(sum, zip(*stage.progress.values(), strict=True))
        seconds = time.perf_counter() - stage.started
        event = Event(
            "progress", self._session.run_id, shard.run.round, shard.run.stage, done, stage.total, tokens, seconds
        )
        self._session.emit(event)


def _named(shard: Shard, error: StageError) -> StageError:
    found = StageError(f"round {shard.run.round}, {shard.run.stage}: {error}")
    found.__cause__ = error
    return found
