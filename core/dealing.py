"""Deals the rollouts of a shard to the processes of one verifier, and sees to those that do not come back."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from strop.core.judges import ROLLOUT, Docket
from strop.core.judging import MEMORY, WAITING, Bench, serve, timed_out
from strop.storage import errors
from strop.storage.errors import PluginError

LOOK_EVERY_S = 0.5
LARGEST = 256
"""Most rollouts dealt out at once."""
PLACE = struct.Struct("q")
ID, PROBLEM = ROLLOUT.index("rollout_id"), ROLLOUT.index("problem_id")
TRIES = 2
"""A process can be killed by somebody else, or grow over many items: only the second time it is the item."""


@dataclass(eq=False)
class Child:
    """A process that judges; `start` to `stop` is what it has still to answer."""

    pid: int
    connection: Connection
    place: mmap.mmap
    """Where it writes the rollout it is at."""
    start: int = 0
    stop: int = 0
    seen: int = -1
    """The rollout it was seen at when it was last looked at, at `looked`, and its seconds of waiting there."""
    looked: float = 0.0
    waited: float = 0.0

    @property
    def at(self) -> int:
        """The rollout it is at, or was when it died."""
        return max(int(PLACE.unpack_from(self.place)[0]), self.start)


class Dealer:
    """The processes of one verifier. A shard's ranges get smaller towards its end, so that all end at about once."""

    def __init__(self, bench: Bench, client: Connection, dealers: Mapping[str, Dealer]) -> None:
        self.bench, self.client, self.dealers = bench, client, dealers
        self.children: list[Child] = []
        self.wait_s = WAITING * bench.limits.timeout_s
        self.what: Docket
        self.waiting: deque[tuple[int, int]]
        self.missing = 0
        self.tries: dict[int, int]

    def judge(self, what: Docket) -> None:
        """Until every rollout has its outcome. Raises StropError that a verifier raised, EOFError without a client."""
        self.what, self.missing, self.tries = what, len(what.rollouts), {}
        self.waiting = deque([(0, self.missing)])
        while self.missing:
            self._deal()
            for ready in wait([self.client, *(c.connection for c in self.children)], LOOK_EVERY_S):
                if ready is self.client:
                    raise EOFError
                self._hear(next(c for c in self.children if c.connection is ready))
            self._look()

    def end(self) -> None:
        """End its processes."""
        for child in list(self.children):
            self._end(child)

    def _deal(self) -> None:
        idle = [child for child in self.children if child.start == child.stop]
        most = self.what.processes
        while self.waiting and (idle or len(self.children) < most):
            start, stop = self.waiting.popleft()
            left = sum(b - a for a, b in self.waiting) + stop - start
            size = min(stop - start, LARGEST, max(1, left // (4 * most)))
            if start + size < stop:
                self.waiting.appendleft((start + size, stop))
            if idle and start in self.tries:  # tried again: not by a process that others may have made grow
                self._end(idle.pop())
                self._send(self._fork(), start, start + size)
            else:
                self._send(idle.pop() if idle else self._fork(), start, start + size)

    def _send(self, child: Child, start: int, stop: int) -> None:
        child.start, child.stop, child.seen = start, stop, -1
        PLACE.pack_into(child.place, 0, start)
        what = self.what
        rows = what.rollouts[start:stop]
        said = what.scores
        items = [(row, what.problems[row[PROBLEM]], said.get(row[ID], ()) if said else ()) for row in rows]
        with contextlib.suppress(ConnectionError):  # it died idle, and is heard of as such
            child.connection.send((start, items, what.handles))

    def _hear(self, child: Child) -> None:
        try:
            start, outcomes, leaves = child.connection.recv()
        except (EOFError, ConnectionError):
            self._lost(child, self._end(child))
            return
        self._tell(start, outcomes)
        child.start = start + len(outcomes)
        if leaves:
            self._end(child)
            self._again(child.start, child.stop)

    def _lost(self, child: Child, code: int) -> None:
        """What it has not answered goes to others; the item it was at is to blame, at once for a time-out."""
        if child.start == child.stop:
            return
        at, limits = child.at, self.bench.limits
        self._again(at + 1, child.stop)
        self.tries[at] = self.tries.get(at, 0) + 1
        if code in (-signal.SIGVTALRM, -signal.SIGPROF):
            self._tell(at, [("error", timed_out(limits), "")])
        elif self.tries[at] < TRIES:
            self._again(at, at + 1)
        else:
            reason = (
                f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"it left with code {code}"
            )
            if code == MEMORY:
                most = "" if limits.memory_gb is None else f": it may take {limits.memory_gb:g} GB (`memory_gb`)"
                reason = f"out of memory{most}"
            self._tell(at, [("error", reason, f"{reason}\nno traceback")])
        self._again(child.start, at)

    def _look(self) -> None:
        """End what has waited too long at one item. One that would run, if others left it a core, does not wait."""
        now = time.monotonic()
        for child in [c for c in self.children if c.start < c.stop and now - c.looked > LOOK_EVERY_S / 2]:
            at, passed, child.looked = child.at, now - child.looked, now
            if at != child.seen:
                child.seen, child.waited = at, 0.0
            elif psutil.Process(child.pid).status() != psutil.STATUS_RUNNING:
                child.waited += passed
            if child.waited > self.wait_s:
                self._end(child)
                self._tell(at, [("error", f"timed out after {self.wait_s:g} s of waiting", "")])
                self._again(at + 1, child.stop)
                self._again(child.start, at)

    def _again(self, start: int, stop: int) -> None:
        if start < stop:
            self.waiting.appendleft((start, stop))

    def _tell(self, start: int, outcomes: list[Any]) -> None:
        stops = [o for o in outcomes if o[0] == "stop"]
        if stops:
            _, text, kind = stops[0]
            raise getattr(errors, kind, PluginError)(text)
        self.missing -= len(outcomes)
        if outcomes:
            self.client.send(("judged", start, outcomes))

    def _fork(self) -> Child:
        ours, theirs = Pipe()
        place = mmap.mmap(-1, PLACE.size)
        pid = os.fork()
        if pid == 0:
            mine = [child.connection for dealer in self.dealers.values() for child in dealer.children]
            self._serve(theirs, [ours, self.client, *mine], place)
        theirs.close()
        self.children.append(Child(pid, ours, place))
        return self.children[-1]

    def _serve(self, connection: Connection, others: list[Connection], place: mmap.mmap) -> None:
        try:
            for other in others:
                other.close()
            with contextlib.suppress(EOFError, ConnectionError):
                serve(connection, self.bench, lambda index: PLACE.pack_into(place, 0, index))
        finally:
            os._exit(0)

    def _end(self, child: Child) -> int:
        """Kill it with what it has started; how it ended, before or now."""
        self.children.remove(child)
        child.connection.close()
        os.kill(child.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        return code
