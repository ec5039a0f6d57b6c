"""Files and folders that are to go: how old they are, how much they hold, and their removal."""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from strop.storage.data_files import DataFiles, StoredFile


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is to go."""

    kind: str
    bytes: int
    local: Path | None = None
    """A file or folder of this machine."""
    stored: tuple[str, ...] = ()
    """Locations in the lake's store."""

    def remove(self, store: DataFiles) -> None:
        """Remove it, as far as it is still there."""
        store.delete(self.stored)
        if self.local is not None and self.local.is_dir() and not self.local.is_symlink():
            shutil.rmtree(self.local, ignore_errors=True)
        elif self.local is not None:
            with contextlib.suppress(OSError):
                self.local.unlink(missing_ok=True)


def local(kind: str, folder: Path, pattern: str, before: float) -> Iterator[Leftover]:
    """What matches in a folder and has not been written since `before`, in seconds of the epoch."""
    for path in sorted(folder.glob(pattern)):
        size, touched = _looked_at(path)
        if touched < before:
            yield Leftover(kind, size, path)


def _looked_at(path: Path) -> tuple[int, float]:
    """Bytes, and when it or anything below it was last written; what goes meanwhile counts nothing."""
    size, last = 0, 0.0
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            found = one.lstat()
            size += 0 if one.is_dir() else found.st_size
            last = max(last, found.st_mtime)
    return size, last


def checkpoints(store: DataFiles) -> dict[str, list[StoredFile]]:
    """The files of every checkpoint in the lake's store, by the path that a policy's row has."""
    found: dict[str, list[StoredFile]] = defaultdict(list)
    root = store.at("policies") + "/"
    for file in store.list("policies"):
        found[f"policies/{file.location.removeprefix(root).split('/')[0]}"].append(file)
    return found
