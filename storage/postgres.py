"""Sessions of this process on the catalog's PostgreSQL: made when needed, kept for the next use, closed at the end.

A session is used by one thread at a time, since an advisory lock belongs to the session that took it. Each one is
called `strop <pid> on <host>` in `pg_stat_activity`, so that whoever waits for a lock can be told who holds it. Both
ends probe a silent connection, so that the locks of a machine that lost its power are free after about two minutes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from strop.storage.errors import CatalogError, LakeError
from strop.storage.place import Place

if TYPE_CHECKING:
    import psycopg

    Session = psycopg.Connection[dict[str, Any]]

CONNECT_TIMEOUT_S = 10
PROBES = {"tcp_keepalives_idle": 60, "tcp_keepalives_interval": 15, "tcp_keepalives_count": 4}
"""Settings of both sides: seconds of silence, seconds between probes, probes without an answer."""
UNANSWERED_MS = 120_000
"""Give up on what was sent and never acknowledged after this long."""
KEPT = 2
"""Idle sessions kept for a catalog."""

_idle: dict[tuple[int, str], list[Session]] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def session(place: Place) -> Iterator[Session]:
    """A session nobody else uses, in autocommit; an exception inside closes it, and its locks go with it.

    Raises CatalogError when the server cannot be reached, LakeError when psycopg is not installed.
    """
    key = (os.getpid(), place.catalog or "")
    taken = _kept(key) or connect(place)
    try:
        yield taken
    except BaseException:
        taken.close()
        raise
    with _guard:
        kept = _idle.setdefault(key, [])
        if len(kept) < KEPT and not taken.closed:
            kept.append(taken)
            return
    taken.close()


def _kept(key: tuple[int, str]) -> Session | None:
    """An idle session whose server still listens: one with something to read was told good-bye."""
    while True:
        with _guard:
            if not (kept := _idle.get(key)):
                return None
            found = kept.pop()
        if not found.closed and not select.select([found.fileno()], [], [], 0)[0]:
            return found
        found.close()


def connect(place: Place) -> Session:
    """A new session. Raises like `session`."""
    psycopg = psycopg_or_advice(place)
    try:
        made: Session = psycopg.connect(
            place.catalog or "",
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"strop {os.getpid()} on {socket.gethostname()}"[:63],  # PostgreSQL cuts it there
            client_encoding="utf8",
            keepalives_idle=PROBES["tcp_keepalives_idle"],
            keepalives_interval=PROBES["tcp_keepalives_interval"],
            keepalives_count=PROBES["tcp_keepalives_count"],
            tcp_user_timeout=UNANSWERED_MS,
            row_factory=psycopg.rows.dict_row,
        )
        made.execute("; ".join(f"SET {name} = {value}" for name, value in PROBES.items()).encode())
        return made
    except psycopg.Error as error:
        raise CatalogError(
            f"cannot reach the catalog {place.catalog} of the lake {place}: {said(error)}. Check that the "
            "server runs and lets you in (PGPASSWORD or ~/.pgpass holds the password)"
        ) from error


def psycopg_or_advice(place: Place) -> ModuleType:
    """The library, loaded only where a catalog needs it. Raises LakeError that says how to install it."""
    try:
        import psycopg
    except ImportError as error:
        raise LakeError(
            f"the lake {place} has its catalog in PostgreSQL, which needs psycopg ({error}): "
            "pip install 'strop[remote]'"
        ) from error
    return psycopg


def said(error: Exception) -> str:
    """A database's message on one line, without its last full stop."""
    return " ".join(str(error).split()).rstrip(".?")


@atexit.register
def close_idle() -> None:
    """Close what this process keeps."""
    with _guard:
        for (pid, _), kept in _idle.items():
            while pid == os.getpid() and kept:
                kept.pop().close()
