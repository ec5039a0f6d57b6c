"""The files below `data/` and `policies/`, in a lake's folder or on S3: put, look, read, list, delete.

A file is named by its location, as DuckDB names it: an absolute path, or `s3://bucket/key`. What `put` returns from is
on the disk or acknowledged by the store: a PUT shows the whole object or nothing, as a rename does.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from strop.storage.durable import discard, fsync_all, make_folder
from strop.storage.errors import LakeError
from strop.storage.place import Place

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

AT_ONCE = 16
"""Requests in flight."""
CHUNK = 8 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file that is there."""

    location: str
    size: int
    modified: datetime.datetime


class DataFiles(Protocol):
    """A lake's files, wherever they are. Errors of the disk or the store are OSErrors."""

    def at(self, name: str) -> str:
        """The location of a name such as 'data/main/rollouts/x.parquet'."""

    def put(self, files: Mapping[str, Path | bytes]) -> None:
        """Put local files and contents in place by location; what was there is replaced.

        A local file is renamed where the lake is on this disk, else left where it was.
        """

    def size(self, location: str) -> int | None:
        """Bytes of a file; None when it is not there."""

    def read(self, location: str) -> bytes:
        """The whole of a file. Raises FileNotFoundError."""

    def fetch(self, location: str, to: Path) -> None:
        """Copy a file to this machine, not flushed to the disk."""

    def list(self, name: str) -> Iterator[StoredFile]:
        """Every file below a name such as 'data'; none when there is no such folder."""

    def delete(self, locations: Iterable[str]) -> None:
        """Remove files as far as possible; one that is gone already is no error."""


def data_files(place: Place) -> DataFiles:
    """The files of the lake at a place. Raises LakeError when the place is on S3 and there are no keys."""
    if place.data is None:
        return LocalFiles(place.root)
    from strop.storage.s3 import file_system

    return S3Files(place.data, file_system(place))


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Below a folder of this machine."""

    root: Path

    def at(self, name: str) -> str:
        """See `DataFiles`, here as below."""
        return str(self.root / name)

    def put(self, files: Mapping[str, Path | bytes]) -> None:
        """Rename, or write aside and rename; flushed side by side."""
        written: dict[Path, Path] = {}
        for location, source in files.items():
            target = Path(location)
            make_folder(target.parent)
            if isinstance(source, bytes):
                written[target] = fresh = target.with_name(f".{target.name}.writing")
                fresh.write_bytes(source)
        fsync_all(written.values())
        for location, source in files.items():
            target = Path(location)
            (source if isinstance(source, Path) else written[target]).replace(target)
        fsync_all({Path(location).parent for location in files})

    def size(self, location: str) -> int | None:
        """One look at the file."""
        try:
            return Path(location).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, location: str) -> bytes:
        """All of it in memory."""
        return Path(location).read_bytes()

    def fetch(self, location: str, to: Path) -> None:
        """A plain copy."""
        import shutil

        shutil.copyfile(location, to)

    def list(self, name: str) -> Iterator[StoredFile]:
        """Files only, folders do not count."""
        for path in (self.root / name).rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # removed while we look
                if path.is_file():
                    found = path.stat()
                    modified = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
                    yield StoredFile(str(path), found.st_size, modified)

    def delete(self, locations: Iterable[str]) -> None:
        """Folders stay."""
        discard(map(Path, locations))


@dataclass(frozen=True, slots=True)
class S3Files:
    """Below `s3://bucket/prefix`, through Arrow's client; several requests at once."""

    url: str
    client: S3FileSystem

    def at(self, name: str) -> str:
        """See `DataFiles`, here as below."""
        return f"{self.url}/{name}"

    def put(self, files: Mapping[str, Path | bytes]) -> None:
        """Upload."""
        self._each(self._put, files.items())

    def _put(self, pair: tuple[str, Path | bytes]) -> None:
        location, source = pair
        if isinstance(source, bytes):
            with self.client.open_output_stream(_key(location)) as stream:
                stream.write(source)
            return
        size = source.stat().st_size
        with source.open("rb") as local, self.client.open_output_stream(_key(location)) as stream:
            while chunk := local.read(CHUNK):
                stream.write(chunk)
        if (stored := self.size(location)) != size:  # an upload that was cut short ends as a shorter object
            raise OSError(f"{location} has {stored} bytes after uploading {size}")

    def size(self, location: str) -> int | None:
        """One HEAD request."""
        found: FileInfo = self.client.get_file_info(_key(location))
        return int(found.size) if found.is_file else None

    def read(self, location: str) -> bytes:
        """All of it in memory."""
        with self.client.open_input_file(_key(location)) as stream:
            return bytes(stream.read())

    def fetch(self, location: str, to: Path) -> None:
        """Download in pieces."""
        with self.client.open_input_file(_key(location)) as stream, to.open("wb") as local:
            while chunk := stream.read(CHUNK):
                local.write(chunk)

    def list(self, name: str) -> Iterator[StoredFile]:
        """A thousand a request."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(_key(self.at(name)), allow_not_found=True, recursive=True)
        for found in self.client.get_file_info(selector):
            if found.is_file:
                yield StoredFile(f"s3://{found.path}", int(found.size), found.mtime)

    def delete(self, locations: Iterable[str]) -> None:
        """What cannot be removed is swept later."""

        def gone(location: str) -> None:
            with contextlib.suppress(OSError):
                self.client.delete_file(_key(location))

        self._each(gone, locations)

    def _each(self, work: Callable[[T], None], things: Iterable[T]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(work, things):
                pass


def _key(location: str) -> str:
    """'bucket/key', as Arrow names objects. Raises LakeError for anything that is not on S3."""
    if not location.startswith("s3://"):
        raise LakeError(f"{location} is not on S3, where this lake has its data")
    return location.removeprefix("s3://")
