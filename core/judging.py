"""A process that judges rollouts one at a time, each within its limits; forked by `judge_server`.

Processor time is what counts, so that a verdict does not depend on what else the machine does. When it is up, a signal
raises `TimedOut` in the verifier; where that is not heard, as within a C function, the kernel ends the process a moment
later. How long it waits is watched by the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from strop.core.failures import what_failed
from strop.core.judges import ROLLOUT, score_values
from strop.core.plugin import Config, PerRollout, Task
from strop.core.registry import Plugin
from strop.storage.errors import StropError
from strop.storage.tables import Problem, Rollout, Score

MEMORY = 3
"""Exit code of a process whose item got no memory."""
WAITING = 6
"""Times its processor time that an item may wait, for a lock, a reply or a child process of its own."""
SEND_EVERY_S = 0.2
_LONGEST = 500
"""Characters of a reason."""
_DIE_WITH_PARENT = 1

Outcome = tuple[str, Any, str]
"""What became of an item: 'score' (its values), 'error' (the reason, and a traceback where the verifier raised),
'contract' (what it returned instead of a score) or 'stop' (an error that ends the run)."""


class TimedOut(BaseException):
    """An item's processor time is up. No Exception: a verifier that catches those must not catch this."""


Item = tuple[tuple[Any, ...], Problem, Sequence[Score]]
"""A rollout as values of the columns `ROLLOUT`, its problem, and what was said of it before."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A verifier, loaded."""

    plugin: Plugin
    config: Config
    tasks: dict[str, Task]

    @property
    def limits(self) -> PerRollout:
        """Its limits."""
        assert isinstance(self.config, PerRollout)
        return self.config

    def judge(self, item: Item, same: Mapping[str, Any]) -> Outcome:
        """Call the verifier on one rollout; `same` are the handles that do not differ."""
        row, problem, scores = item
        rollout = Rollout(**dict(zip(ROLLOUT, row, strict=True)))
        handles = {**same, "rollout": rollout, "problem": problem, "tasks": self.tasks, "scores": scores}
        found = self.plugin.call(self.config, handles)
        if not isinstance(found, Score):
            return "contract", f"{type(found).__name__}: {found!r}"[:_LONGEST], ""
        own = ("rollout", rollout.rollout_id, rollout.problem_id)
        if (found.subject_kind, found.subject_id, found.problem_id) != own:
            found = replace(found, subject_kind=own[0], subject_id=own[1], problem_id=own[2])
        return "score", score_values(found), ""


def timed_out(limits: PerRollout) -> str:
    """The reason, however it was noticed."""
    return f"timed out after {limits.timeout_s:g} s of processor time"


def serve(connection: Connection, bench: Bench, at: Callable[[int], None]) -> None:
    """Judge what comes in, (first, items, handles), telling `at` before each; sends (first, outcomes, if it leaves).

    After a time-out and for want of memory the process is not used again.
    """
    _enter(bench.limits)
    bell = _Bell(bench.limits.timeout_s)
    while True:
        start, items, same = connection.recv()
        found: list[Outcome] = []
        sent = time.monotonic()
        for index, item in enumerate(items, start):
            at(index)
            if found and time.monotonic() - sent > SEND_EVERY_S:
                connection.send((start, found, False))
                start, found, sent = index, [], time.monotonic()
            try:
                with bell:
                    outcome = bench.judge(item, same)
            except TimedOut:
                connection.send((start, [*found, ("error", timed_out(bench.limits), "")], True))
                return
            except MemoryError:
                connection.send((start, found, False))
                os._exit(MEMORY)
            except StropError as error:
                outcome = ("stop", str(error), type(error).__name__)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                outcome = ("error", _reason(error), _trace(error))
            found.append(outcome)
        connection.send((start, found, False))


def _reason(error: BaseException) -> str:
    text = what_failed(error) if isinstance(error, Exception) else f"{type(error).__name__}: {error}"
    return text[:_LONGEST]


def _trace(error: BaseException) -> str:
    """The traceback from the verifier's own function on; its last line says where."""
    frames = traceback.extract_tb(error.__traceback__)[3:] or traceback.extract_tb(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return f"{text}{frames[-1].filename}, line {frames[-1].lineno}"


class _Bell:
    """Rings when the item in hand has had its processor time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._on = False
        signal.signal(signal.SIGPROF, self._ring)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGVTALRM])

    def __enter__(self) -> None:
        self._on = True
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, 1.2 * self._seconds + 0.2)

    def __exit__(self, *error: object) -> None:
        self._on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _ring(self, *_: object) -> None:
        if self._on:
            raise TimedOut


def end_with_parent(signum: int) -> None:
    """The kernel sends this process the signal when the one that started it is killed. Linux alone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, int(signum))


def _enter(limits: PerRollout) -> None:
    """A process group of its own, so that what the verifier starts ends with it; no core files; a limit of memory."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end_with_parent(signal.SIGKILL)
    if limits.memory_gb is not None:
        most = _address_space() + int(limits.memory_gb * 2**30)
        with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _address_space() -> int:
    """Bytes of it in use: the loaded verifier's."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
