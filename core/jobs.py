"""Jobs for worker processes of any number of pools, added at any time, and whichever ends next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from strop.storage.errors import StageError, StropError

if TYPE_CHECKING:
    from strop.core.workers import Worker, Workers

Work = Callable[[Any, Callable[[Any], None]], Any]
"""A module-level function work(argument, report) -> result; `report` sends progress to the parent."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A piece of work for one process of a pool."""

    pool: Workers
    work: Work
    argument: Callable[[], Any]
    """Gives the argument; called when a process is free for it."""
    name: str = ""
    """Begins the message of a StageError."""
    on_report: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """How a job ended: with a result, or an error."""

    job: Job
    result: Any = None
    error: StropError | None = None


class Jobs:
    """Jobs that wait and jobs at work, in any number of pools. More may be added at any time."""

    def __init__(self) -> None:
        self._waiting: dict[Workers, deque[Job]] = {}
        self._busy: dict[Connection, tuple[Worker, Job]] = {}

    def __bool__(self) -> bool:
        return bool(self._busy or any(self._waiting.values()))

    def add(self, job: Job) -> None:
        """Put it behind those that wait for the same pool."""
        self._waiting.setdefault(job.pool, deque()).append(job)

    def drop(self) -> list[Job]:
        """Forget the jobs that have not begun; which they were."""
        dropped = [job for waiting in self._waiting.values() for job in waiting]
        self._waiting.clear()
        return dropped

    def next(self) -> Done:
        """Wait for a job to end. Its process is at work again when this returns, if there is more for it to do."""
        self._dispatch()
        while True:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                worker, job = self._busy[connection]
                kind, value = worker.receive()
                if kind == "report":
                    if job.on_report is not None:
                        job.on_report(value)
                    continue
                del self._busy[connection]
                if kind != "error":
                    self._dispatch()
                    return Done(job, value)
                named = job.name and type(value) is StageError
                return Done(job, error=StageError(f"{job.name}: {value}") if named else value)

    def abandon(self) -> None:
        """Forget those that wait, and end the pools of those at work: they have nobody to report to."""
        self._waiting.clear()
        for pool in {job.pool for _, job in self._busy.values()}:
            pool.release()
        self._busy.clear()

    def _dispatch(self) -> None:
        for pool, waiting in self._waiting.items():
            while waiting:
                worker = pool.idle({worker for worker, job in self._busy.values() if job.pool is pool})
                if worker is None:
                    break
                job = waiting.popleft()
                worker.send(job.work, job.argument())
                self._busy[worker.connection] = (worker, job)


def given(argument: Any) -> Any:
    """The argument: what a job is made with where it is there already."""
    return argument
