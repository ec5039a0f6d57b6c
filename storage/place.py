"""Where a lake is: a folder on this machine, and in `lake.toml` there, the catalog and the data it shares with others.

    catalog = "postgresql://strop@db.example/lake"
    data = "s3://bucket/prefix"
    endpoint = "http://127.0.0.1:9000"          # only for stores that are not Amazon's

Either may be left out: then it lies in the folder, as both do when there is no `lake.toml`. No secret is stored: libpq
reads `PGPASSWORD` or `~/.pgpass`, S3 clients read `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
Light on purpose: importing it costs a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from strop.storage.errors import LakeError, did_you_mean

FILE = "lake.toml"


@dataclass(frozen=True, slots=True)
class Place:
    """A lake's folder, catalog and data."""

    root: Path
    """Absolute: staging, work, logs, locks and checkpoints of this machine; the whole lake when nothing else is set."""
    catalog: str | None = None
    """URI of the PostgreSQL database that is the catalog; None = `catalog.sqlite` in the folder."""
    data: str | None = None
    """`s3://bucket/prefix` that holds `data/` and `policies/`, no slash at its end; None = in the folder."""
    endpoint: str | None = None
    """URL of the S3 server; None = Amazon's."""

    @property
    def exists(self) -> bool:
        """Whether a lake was made here, or joined from here."""
        return self.catalog is not None or self.sqlite.is_file()

    @property
    def sqlite(self) -> Path:
        """The catalog of a lake that has no other."""
        return self.root / "catalog.sqlite"

    @property
    def data_url(self) -> str:
        """What precedes a table's files, with a slash at its end: DuckLake's DATA_PATH."""
        return f"{self.data or self.root}/data/"

    def __str__(self) -> str:
        return str(self.root)


def place_of(root: Path) -> Place:
    """The place of the lake in a folder. Raises LakeError when its `lake.toml` is malformed."""
    root = Path(root).absolute()
    path = root / FILE
    if not path.is_file():
        return Place(root)
    import tomllib

    try:
        return checked(root, tomllib.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, ValueError) as error:
        raise LakeError(f"cannot read {path}: {error}") from error


def no_lake(place: Place) -> LakeError:
    """The error of a folder without a lake."""
    return LakeError(
        f"there is no lake in {place} (no catalog.sqlite); `strop run --lake {place}` makes one, "
        f"and `--lake <folder>` names another"
    )


def run_lock_name(run_id: str) -> str:
    """Name of the lock that whoever drives the run holds."""
    return f"run-{run_id.replace('/', '_')}"


def checked(root: Path, keys: dict[str, object], where: Path) -> Place:
    """A place of these keys. Raises LakeError that names the wrong one and `where` it was found."""
    from urllib.parse import urlsplit

    known = [field.name for field in fields(Place) if field.name != "root"]
    for name, value in keys.items():
        if name not in known:
            raise LakeError(f"{where}: unknown key {name!r}{did_you_mean(name, known)}")
        if not isinstance(value, str):
            raise LakeError(f"{where}: {name} must be a text, got {value!r}")
    place = Place(root, **{name: str(value).rstrip("/") for name, value in keys.items()})
    for name, url, schemes, example in (
        ("catalog", place.catalog, ("postgresql", "postgres"), "postgresql://user@host/database"),
        ("data", place.data, ("s3",), "s3://bucket/prefix"),
        ("endpoint", place.endpoint, ("http", "https"), "http://127.0.0.1:9000"),
    ):
        if url is None:
            continue
        try:
            parts = urlsplit(url)
            secret = parts.password is not None or "password=" in parts.query.lower()
        except ValueError as error:
            raise LakeError(f"{where}: {name} = {url!r} is no URL ({error}); write it like {example}") from error
        if parts.scheme not in schemes or (name != "catalog" and not parts.netloc):
            raise LakeError(f"{where}: {name} = {url!r} is not understood; write it like {example}")
        if secret:
            raise LakeError(
                f"{where}: {name} holds a password, which is never stored: leave it out and set PGPASSWORD, "
                "write ~/.pgpass, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    return place
