"""S3 for both who speak it: Strop itself through Arrow's client, and DuckDB through its httpfs extension.

Keys come from the environment, as every S3 client reads them, and are stored nowhere.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from strop.storage.errors import LakeError
from strop.storage.place import Place

if TYPE_CHECKING:
    import duckdb
    from pyarrow.fs import S3FileSystem

TIMEOUT_S = 60.0
SECRET = "strop_data"
THREADS = 16
LEAKY = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")
"""Settings that httpfs fills from the environment when it is loaded, readable by `current_setting`."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What opens the store."""

    id: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)
    region: str


def keys() -> Keys:
    """The keys of the environment. Raises LakeError when there are none."""
    id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not id or not secret:
        raise LakeError(
            "the lake's data are on S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, "
            "AWS_REGION where needed); `aws configure export-credentials --format env` prints those of a profile"
        )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return Keys(id, secret, os.environ.get("AWS_SESSION_TOKEN") or None, region)


def file_system(place: Place) -> S3FileSystem:
    """Arrow's client for the place; one for each set of keys."""
    return _file_system(place.endpoint, keys())


@functools.lru_cache(maxsize=8)
def _file_system(endpoint: str | None, found: Keys) -> S3FileSystem:
    from pyarrow.fs import S3FileSystem

    parts = urlsplit(endpoint or "")
    return S3FileSystem(
        access_key=found.id,
        secret_key=found.secret,
        session_token=found.token,
        region=found.region,
        endpoint_override=f"{parts.netloc}{parts.path}" if endpoint else None,
        scheme=parts.scheme or "https",
        connect_timeout=10,
        request_timeout=TIMEOUT_S,
        background_writes=False,
        allow_delayed_open=True,  # one request for a small object instead of three
    )


def let_in(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Let a connection with httpfs read and write the place's data: a secret in memory, for that prefix alone.

    The keys that httpfs took from the environment are wiped, so that no SQL can read them back. DuckDB waits for one
    request a thread, so it gets more threads than there are cores: 40 small objects are read in 0.4 s instead of 1.0.
    """
    from strop.storage.extensions import quoted

    found = keys()
    options = {"KEY_ID": found.id, "SECRET": found.secret, "REGION": found.region, "SCOPE": f"{place.data}/"}
    if found.token:
        options["SESSION_TOKEN"] = found.token
    text = ", ".join(f"{name} {quoted(value)}" for name, value in options.items())
    if place.endpoint:
        parts = urlsplit(place.endpoint)
        secure = str(parts.scheme == "https").lower()
        text += f", ENDPOINT {quoted(parts.netloc + parts.path)}, URL_STYLE 'path', USE_SSL {secure}"
    connection.execute(f"CREATE OR REPLACE TEMPORARY SECRET {SECRET} (TYPE s3, {text})")
    for name in LEAKY:
        connection.execute(f"SET GLOBAL {name} = ''")
    connection.execute(f"SET threads = {max(THREADS, os.cpu_count() or 1)}")
