"""A file that appears whole or not at all: written beside its place, fsynced and renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from strop.storage.durable import discard, fsync
from strop.storage.errors import LakeError


@contextlib.contextmanager
def replacing(path: Path, *, force: bool, outside: Path) -> Iterator[Path]:
    """Where to write what is to become `path` when the block ends well.

    Raises LakeError when the file exists and is not to be replaced, and for a place inside the lake `outside`.
    """
    path = path.absolute()
    if path.resolve().is_relative_to(outside.resolve()):
        raise LakeError(f"{path} is inside the lake {outside}, whose files are not for writing; name a place outside")
    if not path.parent.is_dir():
        raise LakeError(f"cannot write {path}: there is no folder {path.parent}")
    _check(path, force)
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield waiting
        fsync(waiting)
        _check(path, force)
        waiting.replace(path)
        fsync(path.parent)
    except OSError as error:
        raise LakeError(f"cannot write {path}: {error}") from error
    finally:
        discard([waiting])


def _check(path: Path, force: bool) -> None:
    if path.is_dir():
        raise LakeError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise LakeError(f"{path} exists; name another file, or replace it with --force")
