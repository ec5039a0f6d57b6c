"""`strop lake init`: a lake that several machines share, its catalog in PostgreSQL and its data on S3."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from strop.flows import output

app = typer.Typer(help="Where a lake keeps its catalog and data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    pass


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="This machine's folder of the lake: scratch, logs, checkpoints.")],
    catalog: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this at import on every Python we support
        typer.Option("--catalog", metavar="URI", help="PostgreSQL database, e.g. postgresql://user@host/db."),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--data", metavar="URL", help="Where the Parquet files go, e.g. s3://bucket/prefix."),
    ] = None,
    endpoint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--endpoint", metavar="URL", help="An S3 server that is not Amazon's, e.g. http://minio:9000."),
    ] = None,
) -> None:
    """Make a shared lake, or join one: the same line on every machine.

    Passwords and keys come from PGPASSWORD or ~/.pgpass and AWS_*, and are not stored.
    """
    from strop.storage.joining import join

    joined = join(folder, {"catalog": catalog, "data": data, "endpoint": endpoint})
    place = joined.place
    verb = "made" if joined.made else "joined"
    print(f"{verb} the lake {place.root}: catalog {place.catalog or place.sqlite}, data {place.data_url}")
    output.say(f"\ntry:\n  strop run --lake {folder}")
