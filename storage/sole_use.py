"""One user of a lake's SQLite catalog at a time within this process: two SQLite libraries read and write it.

DuckDB's extension brings its own beside Python's. File locks belong to the process, so neither library keeps the other
out: DuckDB's, closing a file that Python's has in a transaction, takes itself for the last user and removes the
write-ahead log with the transaction in it. Between processes SQLite's own locks hold.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

_LOCKS: dict[Path, contextlib.AbstractContextManager[bool]] = {}
_ONE_AT_A_TIME = threading.Lock()
_IN_TRANSACTION = threading.local()


def sole_use(root: Path) -> contextlib.AbstractContextManager[bool]:
    """The lock of a lake's catalog in this process, taken after the commit lock where both are needed."""
    path = Path(root).resolve()
    with _ONE_AT_A_TIME:
        return _LOCKS.setdefault(path, threading.RLock())


@contextlib.contextmanager
def through_python(root: Path) -> Iterator[None]:
    """Hold it for a transaction by Python's library, within which this thread must not ask DuckDB for anything."""
    with sole_use(root):
        outer = getattr(_IN_TRANSACTION, "of", None)
        _IN_TRANSACTION.of = root
        try:
            yield
        finally:
            _IN_TRANSACTION.of = outer


@contextlib.contextmanager
def through_duckdb(root: Path) -> Iterator[None]:
    """Hold it for statements of DuckDB. Raises RuntimeError within a transaction by Python's library."""
    if getattr(_IN_TRANSACTION, "of", None) == root:
        raise RuntimeError(f"DuckDB must not touch the catalog of {root} within a transaction of open_catalog_db")
    with sole_use(root):
        yield
