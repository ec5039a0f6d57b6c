"""Where an export goes: it appears whole under its name, or not at all, and never in place of something else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from strop.storage.durable import fsync
from strop.storage.errors import LakeError

MANIFEST = "strop_export.json"


def manifest_of(path: Path) -> Path:
    """Where the manifest of an export lies: in its folder, or beside its file."""
    return path.with_name(f"{path.name}.{MANIFEST}") if path.suffix in FILES else path / MANIFEST


FILES = (".jsonl", ".parquet")
"""Endings that make an export one file; everything else is a folder."""


def check_free(path: Path, *, force: bool) -> None:
    """Raises LakeError when something is there that may not be replaced.

    With `force` an earlier export may, a file of the kind written too, but no folder that is no export.
    """
    if not path.exists():
        return
    if not force:
        raise LakeError(f"{path} exists already; --force replaces it")
    if path.is_dir() != (path.suffix not in FILES):
        raise LakeError(f"{path} is a {'folder' if path.is_dir() else 'file'}; name another place with -o")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise LakeError(f"{path} is a folder that no export made (it has no {MANIFEST}); name another one with -o")


@contextlib.contextmanager
def fresh(path: Path, *, force: bool) -> Iterator[Path]:
    """A place beside `path` to write to; it becomes `path` when the block ends, and is gone when the block fails.

    A folder is there already; a file is for the block to make. What is written is on the disk before it is renamed.
    """
    path = path.absolute()
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    work = path.with_name(f".{path.name}.writing-{os.getpid()}{path.suffix}")
    if path.suffix not in FILES:
        work.mkdir()
    try:
        yield work
        _flush(work)
        check_free(path, force=force)
        _replace(work, path)
    finally:
        _remove(work)
    fsync(path.parent)


def _replace(work: Path, path: Path) -> None:
    if not path.is_dir():
        work.replace(path)
        return
    old = path.with_name(f".{path.name}.writing-{os.getpid()}.old")
    path.rename(old)
    try:
        work.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(work: Path) -> None:
    for folder, _, names in os.walk(work):
        for name in names:
            fsync(Path(folder) / name)
        fsync(Path(folder))
    if work.is_file():
        fsync(work)


def _sweep(path: Path) -> None:
    """Remove what an export of the same name left when it was killed."""
    for left in path.parent.glob(f".{path.name}.writing-*"):
        number = re.match(r"\d+", left.name.removeprefix(f".{path.name}.writing-"))
        if number is not None and not _alive(int(number.group())):
            _remove(left)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
