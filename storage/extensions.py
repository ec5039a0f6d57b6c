"""DuckDB with DuckLake, offline: the signed extension builds come as wheels, pinned to DuckDB's version.

Only those that the lake's place needs are loaded. The SQLite wheel does not load as shipped: DuckDB takes the entry
point from the file's name, and that one is `sqlite_scanner`. So it is linked under the right name in a cache folder of
the user. DuckDB checks an extension's signature over the whole file, 70 MB of them for a lake in a folder: the first
lake of a process has them checked, the later ones find the same files as they were.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import duckdb

from strop.storage.errors import LakeError
from strop.storage.place import Place


def connect(place: Place) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with DuckLake and what the place needs; it goes to no other server than the place's own."""
    files = _needed(place)
    found = {_state(path) for path in files}
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_unsigned_extensions": str(found <= _CHECKED).lower(),
        }
    )
    for path in files:
        load(connection, path)
    _CHECKED.update(found)
    if place.data:
        _let_in(connection, place)
    return connection


_CHECKED: set[tuple[str, int, int, int]] = set()
"""Files whose signatures this process has had checked."""


def _state(path: Path) -> tuple[str, int, int, int]:
    """Which file it is; another one in its place, or a change of it, makes it differ."""
    about = path.stat()
    return str(path), about.st_ino, about.st_size, about.st_mtime_ns


def _needed(place: Place) -> list[Path]:
    made = [_shipped("ducklake")]
    made += [_shipped("postgres_scanner", "remote") if place.catalog else _linked(_shipped("sqlite"), "sqlite_scanner")]
    return made + ([_shipped("httpfs", "remote")] if place.data else [])


def load_s3(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Let the connection read and write the place's data on S3."""
    load(connection, _shipped("httpfs", "remote"))
    _let_in(connection, place)


def _let_in(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    from strop.storage.s3 import let_in

    let_in(connection, place)


def load(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Load one extension. Raises LakeError when DuckDB refuses it."""
    try:
        connection.execute(f"LOAD {quoted(str(path))}")
    except duckdb.Error as error:
        raise LakeError(f"DuckDB {duckdb.__version__} cannot load {path}: {error}") from error


def quoted(text: str) -> str:
    """The text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _shipped(name: str, extra: str | None = None) -> Path:
    """The file in the extension's wheel. Raises LakeError that says what to install, `extra` where it is in one."""
    wheel = f"'strop[{extra}]'" if extra else f"duckdb-extension-{name}=={duckdb.__version__}"
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if path.is_file():
            return path
    raise LakeError(
        f"the lake needs the DuckDB extension {name!r} of version {duckdb.__version__}: pip install {wheel}"
    )


def _linked(target: Path, name: str) -> Path:
    """`target` under the file name DuckDB wants; one link per target: several environments can live together."""
    folder = _cache() / hashlib.blake2b(str(target).encode(), digest_size=8).hexdigest()
    link = folder / f"{name}.duckdb_extension"
    if not link.exists() or link.resolve() != target.resolve():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a home that cannot be written, as in many containers
            folder = Path(tempfile.mkdtemp(prefix="strop-extensions-"))
            link = folder / link.name
        fresh = folder / f"{name}.{os.getpid()}.link"
        fresh.symlink_to(target)
        fresh.replace(link)
    return link


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "strop" / "duckdb-extensions"
