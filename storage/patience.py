"""A time limit for work that can be interrupted, which counts the work alone and not who reads its result.

An interrupt asks DuckDB to stop, and some queries do not hear it: one function over one row can take minutes. What
then is for the owner of the process to say, hence `stuck`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

GRACE_S = 3.0
"""How long an interrupted query may take to stop before it counts as stuck."""


class Patience:
    """So many seconds for a query, spent only inside `spending`."""

    def __init__(self, seconds: float, interrupt: Callable[[], None], stuck: Callable[[], None] | None) -> None:
        self.is_over = False
        self.spent_s = 0.0
        self._seconds = seconds
        self._interrupt = interrupt
        self._stuck = stuck
        self._inside = False

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Interrupt what happens inside when the time is up; call `stuck` when that did not help. May be nested."""
        if self._inside:
            yield
            return
        left_s = max(self._seconds - self.spent_s, 0.0)
        alarms = [threading.Timer(left_s, self._end)]
        if self._stuck is not None:
            alarms.append(threading.Timer(left_s + GRACE_S, self._stuck))
        started, self._inside = time.monotonic(), True
        for alarm in alarms:
            alarm.daemon = True
            alarm.start()
        try:
            yield
        finally:
            for alarm in alarms:
                alarm.cancel()
            self._inside = False
            self.spent_s += time.monotonic() - started

    def _end(self) -> None:
        self.is_over = True
        self._interrupt()
