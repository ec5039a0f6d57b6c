"""Verifiers that judge one rollout at a time, from the side of whoever wants scores: a worker, or a reward function.

The judging is done by processes that a server forks (see `judge_server`), started with the first shard and kept for the
next ones. It is a process of its own without threads, so that forking is safe wherever the scores are wanted: beside an
engine, in a thread, in a trainer that is not ours. What an item does to its process happens to that item alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from strop.storage.errors import PluginError, StageError
from strop.storage.tables import Problem, Rollout, Row, Score, columns

if TYPE_CHECKING:
    from strop.core.execute import PluginRef

FIRST = 16
"""A verifier that fails on each of so many rollouts at the beginning of a shard is broken, and not the rollouts."""
FEWEST = 4
"""Below so many rollouts nobody can tell."""
REPORT_EVERY_S = 0.5
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""One item uses one core: more would compete with the other items, and threads do not survive a fork."""


def _packing(row: type[Row]) -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    names = tuple(column.name for column in columns(row))
    return names, attrgetter(*names)


ROLLOUT, _rollout_values = _packing(Rollout)
SCORE, score_values = _packing(Score)
"""Columns, and their values: rows travel as tuples, for a frozen dataclass takes ten times longer to pickle."""


@dataclass(frozen=True, slots=True)
class Docket:
    """One shard to be judged: the verifier, what it is handed, and the rollouts."""

    ref: PluginRef
    tasks: Sequence[PluginRef]
    task_seed: int
    handles: Mapping[str, Any]
    """Those that are the same for all rollouts."""
    rollouts: Sequence[tuple[Any, ...]]
    """Values of the columns `ROLLOUT`."""
    problems: Mapping[int, Problem]
    scores: Mapping[int, list[Score]]
    """What was said before, by rollout id."""
    processes: int
    path: Sequence[str] = field(default_factory=lambda: list(sys.path))


def docket(
    ref: PluginRef, handles: Mapping[str, Any], tasks: Sequence[PluginRef], task_seed: int, processes: int
) -> Docket:
    """From the handles of a verifier that judges many rollouts at once."""
    said: dict[int, list[Score]] = {}
    for score in handles.get("scores", ()):
        said.setdefault(score.subject_id, []).append(score)
    same = {name: handles[name] for name in ("seed", "round") if name in handles}
    rows = [_rollout_values(rollout) for rollout in handles["rollouts"]]
    return Docket(ref, tasks, task_seed, same, rows, handles["problems"], said, max(1, processes))


def judged(
    what: Docket, *, name: str, suspicious: bool = True, report: Callable[[int], None] = lambda done: None
) -> list[Score]:
    """A score for each rollout, in their order; `report` is told how many are there.

    An item that raised, took too long, too much memory or its process with it has the verdict 'error' and the reason.
    Raises StageError where the verifier, and no item, is at fault: it failed on each of the first `FIRST` items (not
    asked unless `suspicious`), or its processes cannot run; PluginError where it broke its contract.
    """
    if not what.rollouts:
        return []
    with _ONE_AT_A_TIME:
        here = server()
        try:
            here.connection.send(what)
            return _collected(here, what, name, suspicious, report)
        except (EOFError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                here.process.wait(2)
            raise StageError(
                f"verify plugin {name!r}: the process that starts its processes {here.end()}; the same command goes on"
            ) from None
        except BaseException:
            here.end()
            raise


def _collected(here: _Server, what: Docket, name: str, suspicious: bool, report: Callable[[int], None]) -> list[Score]:
    found: dict[int, Score] = {}
    raised: dict[int, tuple[str, str]] = {}
    first = min(FIRST, len(what.rollouts))
    told = time.monotonic()
    while len(found) < len(what.rollouts):
        kind, *rest = here.connection.recv()
        if kind == "failed":
            raise rest[0]
        start, outcomes = rest
        for i, (said, value, trace) in enumerate(outcomes, start):
            if said == "contract":
                raise PluginError(f"verify plugin {name!r} must return a Score, it returned {value}")
            if trace:
                raised[i] = (value, trace)
            found[i] = _score(what.rollouts[i], said, value)
        if suspicious and first >= FEWEST and all(i in raised for i in range(first)):
            value, trace = raised[0]
            with contextlib.suppress(OSError):
                print(trace, file=sys.stderr, flush=True)
            where = trace.rstrip().splitlines()[-1]
            raise StageError(
                f"verify plugin {name!r} failed: {value} (on each of the first {first} rollouts; {where.strip()})"
            )
        if time.monotonic() - told > REPORT_EVERY_S:
            told = time.monotonic()
            report(len(found))
    return [found[i] for i in range(len(what.rollouts))]


def _score(rollout: tuple[Any, ...], said: str, value: Any) -> Score:
    if said == "score":
        return Score(**dict(zip(SCORE, value, strict=True)))
    about = dict(zip(ROLLOUT, rollout, strict=True))
    return Score(subject_id=about["rollout_id"], problem_id=about["problem_id"], verdict="error", reason=value)


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "strop.core.judge_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD},
            )
        self.connection = Connection(ours.detach())
        self.owner = os.getpid()

    def end(self) -> str:
        """Its processes end with it. How it had ended, in words."""
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        self.connection.close()
        if code is None:
            return "closed its end"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


_SERVERS: list[_Server] = []
_ONE_AT_A_TIME = threading.Lock()


def server() -> _Server:
    """This process's server: a new one where there is none, or it is gone."""
    if _SERVERS and (_SERVERS[0].owner != os.getpid() or _SERVERS[0].process.poll() is not None):
        _SERVERS.clear()
    if not _SERVERS:
        _SERVERS.append(_Server())
    return _SERVERS[0]
