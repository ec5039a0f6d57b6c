"""One user of a lake's SQLite catalog at a time within this process: two SQLite libraries read and write it.

DuckDB's extension brings its own beside Python's. File locks belong to the process, so neither library keeps the other
out, and the one that closes the file lets go of the other's locks: another process could then think itself alone and
remove the write-ahead log under a commit. Between processes SQLite's own locks hold.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

_LOCKS: dict[Path, threading.RLock] = {}  # type: ignore[valid-type]
_ONE_AT_A_TIME = threading.Lock()


def sole_use(root: Path) -> contextlib.AbstractContextManager[bool]:
    """The lock of a lake's catalog in this process; taken after the commit lock where both are needed."""
    path = Path(root).resolve()
    with _ONE_AT_A_TIME:
        return _LOCKS.setdefault(path, threading.RLock())
