"""Files that survive a power cut: what is written is fsynced, and so is the folder that names it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 8


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_all(paths: Iterable[Path]) -> None:
    """Flush several files or folders side by side: a disk's journal takes them as one."""
    several = list(paths)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(fsync, several):
            pass


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each one durably named by its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)


def discard(paths: Iterable[Path]) -> None:
    """Remove files as far as possible; what cannot be removed is swept later."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
