"""The lake's locks where its catalog is PostgreSQL: advisory locks, each held by a session of its own.

The server lets go of them when the session ends, so they do not outlive the process that took them, on whichever
machine it ran. A connection pooler that hands one session to many clients (pgbouncer's transaction mode) breaks them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from strop.storage.errors import CatalogError
from strop.storage.place import Place
from strop.storage.postgres import psycopg_or_advice, said, session

if TYPE_CHECKING:
    from strop.storage.postgres import Session

TRY = "SELECT pg_try_advisory_lock(%s) AS got"
WAIT = "SELECT pg_advisory_lock(%s)"
FREE = "SELECT pg_advisory_unlock(%s)"
HOLDER = """
SELECT a.application_name AS name, a.state_change AS since FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database()
  AND (l.classid::bigint << 32 | l.objid::bigint) = %s"""


@contextlib.contextmanager
def held(place: Place, name: str, *, wait_s: float) -> Iterator[None]:
    """Hold the lock of that name. Raises TimeoutError that names the holder when it is not free within `wait_s`."""
    psycopg = psycopg_or_advice(place)
    key = key_of(name)
    with session(place) as connection:
        try:
            if not _got(connection, key, wait_s):
                raise TimeoutError(_said(_holder(connection, key)))
        except psycopg.Error as error:
            raise CatalogError(f"cannot lock {name} of the lake {place}: {said(error)}") from error
        yield
        with contextlib.suppress(psycopg.Error):  # the session is gone, and the lock with it
            connection.execute(FREE, [key])


def key_of(name: str) -> int:
    """The signed 64-bit number of a lock; a database holds one lake, so the lake is no part of it."""
    return int.from_bytes(hashlib.blake2b(f"strop {name}".encode(), digest_size=8).digest(), signed=True)


def _got(connection: Session, key: int, wait_s: float) -> bool:
    import psycopg

    found = connection.execute(TRY, [key]).fetchone()
    if found and found["got"]:
        return True
    if wait_s <= 0:
        return False
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = {int(wait_s * 1000)}".encode())
            connection.execute(WAIT, [key])
        return True
    except psycopg.errors.LockNotAvailable:
        return False


def holder(place: Place, name: str) -> dict[str, Any] | None:
    """`pid`, `host` and `since` of the process that holds the lock of that name; None when it is free."""
    with session(place) as connection:
        return _holder(connection, key_of(name))


def _holder(connection: Session, key: int) -> dict[str, Any] | None:
    found = connection.execute(HOLDER, [key]).fetchone()
    if found is None:
        return None
    known = re.fullmatch(r"strop (\d+) on (.*)", found["name"])
    since = found["since"].astimezone(datetime.UTC).isoformat(timespec="seconds") if found["since"] else "?"
    return {"pid": int(known[1]) if known else 0, "host": known[2] if known else found["name"], "since": since}


def _said(who: dict[str, Any] | None) -> str:
    return f"process {who['pid']} on {who['host']} since {who['since']}" if who else "another process"
