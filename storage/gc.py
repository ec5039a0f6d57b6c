"""Taking out what nobody needs: merged files, old snapshots, leftovers of killed processes, unused checkpoints.

    freed = gc(Path("lake"), Wishes(older_than=datetime.timedelta(days=1)))

Safe beside running writers and readers. What the catalog needs is never removed, whatever its lists say; what it does
not need stays until nobody has touched it for `older_than`: a console may be open on merged files, and a run may be
about to commit what is staged. While a run is being driven, its work folders stay for a day at least.
A kill between any two steps leaves a whole lake, and the next call removes the rest.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from strop.storage import leftovers, pruning, snapshots
from strop.storage.catalog_db import CatalogDb, open_catalog_db
from strop.storage.checksums import catch_up, file_at, stored_files
from strop.storage.durable import discard
from strop.storage.lake import open_lake
from strop.storage.leftovers import Leftover
from strop.storage.locks import commit_lock, is_driven
from strop.storage.place import Place, place_of
from strop.storage.upkeep import SMALL, merge_small_files

DAY = datetime.timedelta(days=1)
DOOMED = "SELECT path, schedule_start FROM ducklake_files_scheduled_for_deletion"
FORGET = "DELETE FROM ducklake_files_scheduled_for_deletion WHERE path = :path"
MERGEABLE = """
SELECT coalesce(sum(n), 0) AS n FROM (
  SELECT count(*) AS n FROM ducklake_data_file WHERE end_snapshot IS NULL AND file_size_bytes < :small
  GROUP BY table_id HAVING count(*) > 1) s"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to take out."""

    older_than: datetime.timedelta = DAY
    """Only what nobody has touched for as long."""
    keep_snapshots: int | datetime.timedelta | None = None
    """How many snapshots can be read back, or from how long ago; None = all. The newest always can."""
    checkpoints: str = "unreferenced"
    """'unreferenced', or of whose policies to drop the weights, too: 'rejected' or 'not-champion' (see `pruning`)."""
    caches: Sequence[Path] = ()
    """Folders outside the lake, in which `making-*` is left by killed processes."""


@dataclass(frozen=True, slots=True)
class Freed:
    """How much of one kind was taken out, or would be."""

    kind: str
    count: int
    bytes: int


def gc(root: Path, wishes: Wishes, *, dry_run: bool = False) -> list[Freed]:
    """Take out what is wished; what went, by kind. `dry_run` changes nothing and tells what would go.

    Raises LakeError when there is no lake, or it cannot be written.
    """
    place = place_of(root)
    now = datetime.datetime.now(datetime.UTC)
    if dry_run:
        with open_catalog_db(place, write=False) as db:
            expired, small = snapshots.expired(db, wishes.keep_snapshots, now), db.execute(MERGEABLE, {"small": SMALL})
        found = [Freed("expired snapshots", len(expired), 0), Freed("small files merged", small[0]["n"], 0)]
        pruned = pruning.candidates(place, wishes.checkpoints)
    else:
        pruned = pruning.prune(place, wishes.checkpoints)
        found = _change(place, wishes, now)
    removed = list(_data_files(place, now, wishes.older_than, dry_run=dry_run))
    removed += _folders(place, wishes, now, pruned)
    if not dry_run:
        for leftover in removed:
            leftover.remove()
    return found + _summed(removed)


def _change(place: Place, wishes: Wishes, now: datetime.datetime) -> list[Freed]:
    """What changes the catalog: expire, merge, record checksums that are missing."""
    with open_lake(place.root) as lake:
        before = _live(place)
        with lake.exclusive() as connection:
            with open_catalog_db(place, write=False) as db:
                expired = snapshots.expired(db, wishes.keep_snapshots, now)
            snapshots.expire(connection, expired)
        with lake.exclusive() as connection:
            merge_small_files(connection, place.root, rollouts=True)
        with commit_lock(place.root):
            catch_up(place)
        return [Freed("expired snapshots", len(expired), 0), Freed("small files merged", len(before - _live(place)), 0)]


def _live(place: Place) -> set[str]:
    with open_catalog_db(place, write=False) as db:
        return {file.path for file in stored_files(db, kept=False) if file.live}


def _data_files(
    place: Place, now: datetime.datetime, older_than: datetime.timedelta, *, dry_run: bool
) -> Iterator[Leftover]:
    """Files below `data/` that no snapshot needs; removed here, under the lock, since a commit may be placing some."""
    if dry_run:
        with open_catalog_db(place, write=False) as db:
            yield from _unneeded(place, db, now - older_than)
        return
    with commit_lock(place.root):
        with open_catalog_db(place, write=False) as db:
            unneeded = list(_unneeded(place, db, now - older_than))
        discard(leftover.path for leftover in unneeded)
        with open_catalog_db(place, write=True) as db:
            for leftover in unneeded:
                db.execute(FORGET, {"path": leftover.path.relative_to(place.root / "data").as_posix()})
    yield from unneeded


def _unneeded(place: Place, db: CatalogDb, before: datetime.datetime) -> Iterator[Leftover]:
    needed = {file.path for file in stored_files(db, kept=False)}
    doomed = {row["path"]: row["schedule_start"] for row in db.execute(DOOMED)}
    for path, at in doomed.items():
        since = datetime.datetime.fromisoformat(at) if isinstance(at, str) else at
        if path not in needed and since < before and not Path(path).is_absolute():
            yield Leftover("merged and expired files", file_at(place, path))
    for where in leftovers.files(place.root / "data"):
        path = where.relative_to(place.root / "data").as_posix()
        if path not in needed and path not in doomed and leftovers.touched(where) < before.timestamp():
            yield Leftover("files of killed commits", where)


def _folders(place: Place, wishes: Wishes, now: datetime.datetime, pruned: Collection[Path]) -> Iterator[Leftover]:
    patience = max(wishes.older_than, DAY) if is_driven(place.root) else wishes.older_than
    before = (now - patience).timestamp()
    for kind, folder, pattern in (
        ("staged files", place.root / "staging", "*"),
        ("work folders", place.root / "work", "*"),
        *(("half-made base policies", cache, "making-*") for cache in wishes.caches),
    ):
        for path in sorted(folder.glob(pattern)):
            if leftovers.touched(path) < before:
                yield Leftover(kind, path)
    for path in pruning.unreferenced(place):
        if leftovers.touched(path) < before:
            yield Leftover("unreferenced checkpoints", path)
    for path in pruned:
        yield Leftover("pruned checkpoints", path)


def _summed(removed: Sequence[Leftover]) -> list[Freed]:
    kinds = dict.fromkeys(leftover.kind for leftover in removed)
    return [
        Freed(kind, sum(of.kind == kind for of in removed), sum(of.bytes for of in removed if of.kind == kind))
        for kind in kinds
    ]
