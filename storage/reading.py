"""When a query fails: is it the query, or is a file damaged?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import duckdb

from strop.storage.catalog_db import open_catalog_db
from strop.storage.errors import LakeError
from strop.storage.place import place_of

OF_THE_QUERY = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.PermissionException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
)
"""Errors that no file can cause."""


def blame(root: Path, error: Exception, tables: Collection[str] | None = None) -> LakeError | None:
    """The error to show instead when files of the tables are damaged; None when none is, or it cannot be told.

    Reads those files whole: only after a failure that they may have caused. `tables` None is all of them.
    """
    if isinstance(error, OF_THE_QUERY):
        return None
    # not above: 10 ms that the first query need not pay
    from strop.storage.checksums import are_kept, damage_report, damages, stored_files

    place = place_of(root)
    try:
        kept = are_kept(place)
        with open_catalog_db(place, write=False) as db:
            files = stored_files(db, kept=kept)
    except LakeError:
        return None
    damaged = list(damages(place, [file for file in files if tables is None or file.table in tables]))
    return LakeError(damage_report(place, damaged)) if damaged else None
