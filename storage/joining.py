"""Making a lake that several machines share, and joining it from another machine: the same call does both."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from strop.storage.data_files import data_files
from strop.storage.durable import fsync, make_folder
from strop.storage.errors import LakeError
from strop.storage.lake import open_lake
from strop.storage.layout import has_catalog
from strop.storage.place import FILE, Place, checked, place_of


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of it."""

    place: Place
    made: bool
    """False when the lake was there already."""


def join(root: Path, keys: Mapping[str, str | None]) -> Joined:
    """Write `lake.toml` (keys: catalog, data, endpoint) in a folder and make the lake unless it is there.

    Both servers are tried first. Raises LakeError when one cannot be reached or written to, when the database holds
    another lake, or when the folder is a lake of another kind; then the folder has no `lake.toml` it did not have.
    """
    root = Path(root).absolute()
    place = checked(root, {name: value for name, value in keys.items() if value is not None}, root / FILE)
    if place.catalog is None and place.data is None:
        raise LakeError("say where: --catalog postgresql://user@host/database, --data s3://bucket/prefix, or both")
    _check_free(place)
    _try_store(place)
    there = has_catalog(place)
    before = (root / FILE).is_file()
    try:
        make_folder(root)
        _write(place)
        open_lake(root, create=True).close()
    except BaseException:
        if not before:
            (root / FILE).unlink(missing_ok=True)
        raise
    return Joined(place, made=not there)


def _check_free(place: Place) -> None:
    if not (place.root / FILE).is_file():
        if place.sqlite.is_file():
            raise LakeError(f"{place} is a lake with its catalog and data in the folder already; name a new folder")
        return
    if (found := place_of(place.root)) != place:
        raise LakeError(
            f"{place.root / FILE} says something else: catalog {found.catalog}, data {found.data}, endpoint "
            f"{found.endpoint}; name a new folder, or correct that file"
        )


def _try_store(place: Place) -> None:
    """Write, read and remove an object."""
    if place.data is None:
        return
    files = data_files(place)
    probe = files.at(f"data/.probe-{secrets.token_hex(8)}")
    try:
        files.put({probe: b"strop"})
        if files.read(probe) != b"strop":
            raise LakeError(f"{probe} does not hold what was written to it")
        files.delete([probe])
    except OSError as error:
        at = f" at {place.endpoint}" if place.endpoint else ""
        raise LakeError(
            f"cannot write to {place.data}{at}: {error}. The bucket must exist, and AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_REGION must open it"
        ) from error


def _write(place: Place) -> None:
    values = {field.name: getattr(place, field.name) for field in fields(place) if field.name != "root"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    path = place.root / FILE
    fresh = path.with_suffix(".writing")
    fresh.write_text("\n".join(["# Passwords and keys are never kept here: see docs/remote.md.", *lines, ""]))
    fsync(fresh)
    fresh.replace(path)
    fsync(path.parent)
