"""Work in a thread, so that Ctrl-C stops a query and not the session; and limits for what DuckDB cannot stop itself."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from strop.flows.output import say

INTERRUPTED, FAILED = 130, 1
HEADROOM = 1 << 30
"""Bytes above the memory limit: texts that a query makes are outside of what DuckDB counts."""


class Quit(Exception):
    """The user is done."""


class Cancelled(Exception):
    """The user stopped it."""


def cancellable(work: Callable[[], None], cancel: Callable[[], None], *, elsewhere: Callable[[], bool]) -> None:
    """Run the work; Ctrl-C calls `cancel`, and a second one ends the process when the work does not stop.

    While `elsewhere` (a pager has the terminal) Ctrl-C is not for us. Raises Cancelled, or what the work raised.
    """
    raised: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    asked = False
    while not done.is_set():
        try:
            if not done.wait(1.0 if asked else None) and asked:
                say("still stopping; Ctrl-C again ends the session")
                done.wait()
        except KeyboardInterrupt:
            if elsewhere():
                continue
            if asked:
                end_now(INTERRUPTED)
            asked = True
            cancel()
    if asked:
        raise Cancelled
    if raised:
        raise raised[0]


def end_now(code: int) -> None:
    """End the process although a thread of it is inside DuckDB, where an ordinary exit would wait or crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stuck() -> None:
    """What happens to a query that does not hear the interrupt of the time limit."""
    say("error: the query took longer than its time limit and does not stop; ending this process. Nothing was changed")
    end_now(FAILED)


@contextlib.contextmanager
def bounded_memory(memory_gb: float) -> Iterator[None]:
    """Let this process's data grow to the limit and some headroom; where the system can, as Linux does.

    DuckDB's own limit covers its tables and sorts, but not the texts of one function call.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(memory_gb * 2**30) + HEADROOM
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
