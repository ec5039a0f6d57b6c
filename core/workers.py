"""Worker processes for the heavy stages: forked from a server that has torch loaded, gone when a stage needs no more.

Each worker has its own process group and dies with its parent, so that neither Ctrl-C nor a kill -9 leaves one
behind. Its output goes to a log file. A worker that dies takes its job with it: the stage fails, naming the log.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from strop.core.failures import LESS_MEMORY, what_failed
from strop.core.jobs import Job, Jobs, Work, given
from strop.storage.errors import StageError, StropError

PRELOAD = ("strop.core.preload",)
GRACE_S = 5.0
SPIN = ("GOMP_SPINCOUNT", "1000")
"""Read by OpenMP when the fork server loads torch: threads that wait for long on a busy machine must not burn its
cores. With the default, two threads on two busy cores were twelve times slower than one."""


class Workers:
    """A pool of up to `count` processes, started when first needed."""

    def __init__(self, count: int, log_dir: Path, *, threads: int = 1, preload: Sequence[str] = PRELOAD) -> None:
        self.count = count
        self.threads = threads
        self._log_dir = log_dir
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._workers: list[Worker] = []

    def run(
        self,
        work: Work,
        arguments: Sequence[Any],
        on_report: Callable[[int, Any], None] | None = None,
        names: Sequence[str] = (),
    ) -> Iterator[tuple[int, Any]]:
        """Do the work for every argument; yields (index, result) as they finish, in any order.

        Raises the work's own StropError, or StageError when it raised something else or its worker died; a StageError
        begins with the name of its argument, where `names` has one for each.
        """
        jobs = Jobs()
        index_of = {}
        for i, argument in enumerate(arguments):
            told = None if on_report is None else partial(on_report, i)
            job = Job(self, work, partial(given, argument), names[i] if names else "", told)
            index_of[job] = i
            jobs.add(job)
        try:
            while jobs:
                done = jobs.next()
                if done.error is not None:
                    raise done.error
                yield index_of[done.job], done.result
        finally:
            jobs.abandon()

    def release(self) -> None:
        """End every worker: TERM, then KILL. Their memory is free when this returns."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop()

    def idle(self, busy: set[Worker]) -> Worker | None:
        """A worker that lives and has nothing to do, None when all have: one may have been killed meanwhile."""
        self._workers = [worker for worker in self._workers if worker in busy or worker.process.is_alive()]
        for worker in self._workers:
            if worker not in busy:
                return worker
        if len(self._workers) >= self.count:
            return None
        worker = Worker(self._context, self._log_dir / f"worker-{len(self._workers)}.log", self.threads)
        self._workers.append(worker)
        return worker


class Worker:
    """One process and the pipe to it."""

    def __init__(self, context: Any, log: Path, threads: int) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, str(log), threads, list(sys.path)), daemon=True, name="strop-worker"
        )
        os.environ.setdefault(*SPIN)
        self.process.start()
        theirs.close()

    def send(self, work: Work, argument: Any) -> None:
        """Begin a job."""
        self.connection.send((work, argument))

    def receive(self) -> tuple[str, Any]:
        """What comes next of it: ('report', value), ('done', result) or ('error', why)."""
        try:
            message: tuple[str, Any] = self.connection.recv()
            return message
        except (EOFError, ConnectionError):
            self.process.join(GRACE_S)
            code = self.process.exitcode
            how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with code {code}"
            hint = f" (out of memory? {LESS_MEMORY})" if code == -signal.SIGKILL else ""
            return "error", StageError(f"a worker process ended {how}{hint}; its output: {self.log}")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()  # before its pipe ends: an exit under way would be cut short
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _serve(connection: Connection, log: str, threads: int, path: list[str]) -> None:
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path[:] = path
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with contextlib.suppress(EOFError, ConnectionError, BrokenPipeError):
        while True:
            connection.send(_answer(connection))


def _leave(*_: object) -> None:
    """End by an exception, so that processes of the worker's own (an engine's) are ended before it is gone."""
    sys.exit(128 + signal.SIGTERM)


def _die_with_parent() -> None:
    """The kernel's parent-death signal would follow the fork server, which outlives a killed parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _answer(connection: Connection) -> tuple[str, Any]:
    """The answer to the next job, its error included."""

    def report(value: Any) -> None:
        connection.send(("report", value))

    try:
        work, argument = connection.recv()
        return "done", work(argument, report)
    except (EOFError, BrokenPipeError, ConnectionError):
        raise
    except StropError as error:
        return "error", portable(error)
    except Exception as error:
        with contextlib.suppress(OSError):  # the log is on the same disk, which may be full
            traceback.print_exc()
            print(time.strftime("%F %T"), flush=True)
        return "error", StageError(what_failed(error))


def portable(error: StropError) -> StropError:
    """The error as it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StageError(str(error))
    return error
