"""Checkpoints by content: a policy's folder is named after the hash of its files, so that none is stored twice.

A folder moves into the lake by one rename, after everything in it is on the disk: it is there whole or not at all.
A lake on S3 has its checkpoints there, and this folder is the machine's cache of them: uploaded before the policy's row
is committed, fetched when a policy made elsewhere is first used, believed only once its hash is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from strop.storage.data_files import data_files
from strop.storage.durable import fsync, make_folder
from strop.storage.errors import MORE_SPACE, LakeError, is_full
from strop.storage.place import Place, place_of

CHUNK = 1 << 20


def hash_directory(directory: Path) -> str:
    """Hex BLAKE2b over the names and bytes of a folder's files, in order of their names.

    Times, permissions and the place of the folder do not count.
    Raises LakeError when it holds anything but files and folders: a link's target may change under the hash.
    """
    total = hashlib.blake2b(digest_size=16)
    for name, path in _files(directory):
        content = hashlib.blake2b()
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                content.update(chunk)
        total.update(f"{len(name.encode())}:{name}".encode() + content.digest())
    return total.hexdigest()


def adopt(lake_root: Path, work_dir: Path) -> tuple[str, str]:
    """Move a checkpoint from a work folder into the lake: its path relative to the lake, and its hash.

    One that is there already is kept, and the work folder dropped. Afterwards `work_dir` is gone.
    Raises LakeError when there is nothing to adopt or it cannot be moved; then `work_dir` is untouched.
    """
    content_hash = hash_directory(work_dir)
    relative = f"policies/{content_hash[:16]}"
    target = lake_root / relative
    try:
        _move(work_dir, target, content_hash)
        upload(lake_root, relative)
    except OSError as error:
        hint = "; work folders must be on the lake's filesystem (`work/`)" if error.errno == errno.EXDEV else ""
        hint = f"; {MORE_SPACE}" if is_full(error) else hint
        raise LakeError(f"cannot move the checkpoint {work_dir} to {target}: {error}{hint}") from error
    return relative, content_hash


def upload(lake_root: Path, relative: str) -> None:
    """Bring a checkpoint of this machine to the lake's store, as far as it is not there; nothing for a local lake."""
    place = place_of(lake_root)
    if place.data is None:
        return
    store = data_files(place)
    there = {file.location: file.size for file in store.list(relative)}
    found = {store.at(f"{relative}/{name}"): path for name, path in _files(place.root / relative)}
    wanted = {location: path for location, path in found.items() if there.get(location) != path.stat().st_size}
    store.put(wanted)


def local_checkpoint(lake_root: Path, path: str, content_hash: str) -> Path:
    """The folder of a policy's checkpoint on this machine, fetched from the lake's store when it is not here yet.

    Raises LakeError when it is nowhere, or when what the store holds is not what was put there.
    """
    folder = lake_root / path
    place = place_of(lake_root)
    if folder.is_dir() or not _is_elsewhere(place, path):
        return folder
    try:
        with _fetched(place, path) as work:
            verify_checkpoint(work, content_hash)
            _move(work, folder, content_hash)
    except OSError as error:
        raise LakeError(f"cannot fetch the checkpoint {path} of the lake {place}: {error}") from error
    return folder


def is_stored(place: Place, path: str) -> bool:
    """Whether the lake's store has a checkpoint at that path."""
    return any(data_files(place).list(path)) if _is_elsewhere(place, path) else (place.root / path).is_dir()


def stored_hash(place: Place, path: str) -> str:
    """The hash of a checkpoint as the lake's store has it now, whatever this machine's cache says. Raises LakeError."""
    if not _is_elsewhere(place, path):
        return hash_directory(place.root / path)
    with _fetched(place, path) as work:
        return hash_directory(work)


def _is_elsewhere(place: Place, path: str) -> bool:
    return place.data is not None and not Path(path).is_absolute()


@contextlib.contextmanager
def _fetched(place: Place, path: str) -> Iterator[Path]:
    """A copy of a stored checkpoint in a work folder, as long as the context lasts. Raises LakeError if it is gone."""
    work = place.root / "work" / f"fetch-{Path(path).name}-{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        store = data_files(place)
        for file in store.list(path):
            copy = work / file.location.removeprefix(store.at(path) + "/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(file.location, copy)
        if not work.is_dir():
            raise LakeError(
                f"the checkpoint {store.at(path)} is gone; restore it, or train again from an earlier policy"
            )
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(work_dir: Path, target: Path, content_hash: str) -> None:
    """Rename a folder whose content has that hash to where it stays; one that is there already is kept."""
    if target.is_dir():
        verify_checkpoint(target, content_hash)
        shutil.rmtree(work_dir)
        return
    for _, path in _files(work_dir):
        fsync(path)
    for folder, _, _ in os.walk(work_dir):
        fsync(Path(folder))
    make_folder(target.parent)
    try:
        work_dir.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        verify_checkpoint(target, content_hash)  # another process adopted the same one a moment ago
        shutil.rmtree(work_dir)
    fsync(target.parent)


def verify_checkpoint(directory: Path, content_hash: str) -> None:
    """Raises LakeError when the folder is missing or no longer holds what was adopted."""
    if not directory.is_dir():
        raise LakeError(f"the checkpoint {directory} is gone; restore it, or train again from an earlier policy")
    found = hash_directory(directory)
    if found != content_hash:
        raise LakeError(
            f"the checkpoint {directory} is not what was stored: its files hash to {found[:16]}, expected "
            f"{content_hash[:16]}; restore it from a copy, or remove the folder and run again"
        )


def is_pruned(detail: str | None) -> bool:
    """Whether a policy's `detail` says that its weights were taken out."""
    return detail is not None and '"pruned"' in detail and json.loads(detail).get("pruned") is True


def _files(directory: Path) -> list[tuple[str, Path]]:
    """The regular files below a folder by their relative name, sorted."""
    if not directory.is_dir():
        raise LakeError(f"there is no checkpoint folder {directory}")
    found = []
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise LakeError(f"a checkpoint holds plain files only, but {path} is a link or a device: copy it instead")
        if path.is_file():
            found.append((path.relative_to(directory).as_posix(), path))
    if not found:
        raise LakeError(f"the checkpoint folder {directory} holds no files")
    return sorted(found)
