"""Files and folders that are to go: how old they are, how much they hold, and their removal."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is to go."""

    kind: str
    path: Path
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes", size(self.path))

    def remove(self) -> None:
        """Remove it, as far as it is still there."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def files(folder: Path) -> Iterator[Path]:
    """Every file below a folder."""
    return (path for path in folder.rglob("*") if not path.is_dir())


def size(path: Path) -> int:
    """Bytes of a file, or of everything below a folder; one that goes meanwhile counts nothing."""
    total = 0
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            total += one.lstat().st_size if not one.is_dir() else 0
    return total


def touched(path: Path) -> float:
    """When the path, or anything below it, was last written, in seconds of the epoch."""
    last = 0.0
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            last = max(last, one.lstat().st_mtime)
    return last
