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
from strop.storage.checksums import catch_up, stored_files
from strop.storage.data_files import DataFiles, data_files
from strop.storage.lake import open_lake
from strop.storage.leftovers import Leftover
from strop.storage.locks import commit_lock, is_driven
from strop.storage.place import Place, place_of
from strop.storage.upkeep import SMALL, merge_small_files

DAY = datetime.timedelta(days=1)
DOOMED = "SELECT path, schedule_start FROM ducklake_files_scheduled_for_deletion WHERE path_is_relative"
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
    store, now = data_files(place), _now()
    if dry_run:
        with open_catalog_db(place, write=False) as db:
            expired = len(snapshots.expired(db, wishes.keep_snapshots, now))
            small = db.execute(MERGEABLE, {"small": SMALL})[0]["n"]
            unneeded = list(_unneeded(store, db, now - wishes.older_than))
        pruned = pruning.prunable(place, wishes.checkpoints)
    else:
        pruned = pruning.prune(place, wishes.checkpoints)
        expired, small = _change(place, wishes, now)
        unneeded = _removed(place, store, _now() - wishes.older_than)
    others = list(_folders(place, store, wishes, now, pruned))
    if not dry_run:
        for leftover in others:
            leftover.remove(store)
    found = [Freed("expired snapshots", expired, 0), Freed("small files merged", small, 0)]
    return found + _summed([*unneeded, *others])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _change(place: Place, wishes: Wishes, now: datetime.datetime) -> tuple[int, int]:
    """What changes the catalog: expire, merge, record checksums that are missing; snapshots and files less."""
    before = _live(place)
    with open_lake(place.root) as lake:
        with open_catalog_db(place, write=False) as db:
            expired = snapshots.expired(db, wishes.keep_snapshots, now)
        with lake.exclusive() as connection:
            snapshots.expire(connection, expired)
        with lake.exclusive() as connection:
            merge_small_files(connection, place, rollouts=True)
    with commit_lock(place.root):
        catch_up(place)
    return len(expired), len(before - _live(place))


def _live(place: Place) -> set[str]:
    with open_catalog_db(place, write=False) as db:
        return {file.path for file in stored_files(db, kept=False) if file.live}


def _removed(place: Place, store: DataFiles, before: datetime.datetime) -> list[Leftover]:
    """The files that no snapshot needs, removed under the lock: a commit may be placing some."""
    with commit_lock(place.root):
        with open_catalog_db(place, write=False) as db:
            unneeded = list(_unneeded(store, db, before))
        store.delete([location for leftover in unneeded for location in leftover.stored])
        below = store.at("data") + "/"
        with open_catalog_db(place, write=True) as db:
            for leftover in unneeded:
                db.execute(FORGET, {"path": leftover.stored[0].removeprefix(below)})
    return unneeded


def _unneeded(store: DataFiles, db: CatalogDb, before: datetime.datetime) -> Iterator[Leftover]:
    """Of what lies below `data/`. What is listed for deletion and gone already is among it, with no bytes."""
    needed = {file.path for file in stored_files(db, kept=False)}
    doomed = {row["path"]: _moment(row["schedule_start"]) for row in db.execute(DOOMED)}
    there = {file.location: file for file in store.list("data")}
    for path, since in doomed.items():
        if path not in needed and since < before:
            location = store.at(f"data/{path}")
            size = there[location].size if location in there else 0
            yield Leftover("merged and expired files", size, stored=(location,))
    known = {store.at(f"data/{path}") for path in (*needed, *doomed)}
    for location, file in there.items():
        if location not in known and file.modified < before:
            yield Leftover("files of killed commits", file.size, stored=(location,))


def _moment(said: str | datetime.datetime) -> datetime.datetime:
    return datetime.datetime.fromisoformat(said) if isinstance(said, str) else said


def _folders(
    place: Place, store: DataFiles, wishes: Wishes, now: datetime.datetime, pruned: Collection[str]
) -> Iterator[Leftover]:
    before = now - (max(wishes.older_than, DAY) if is_driven(place.root) else wishes.older_than)
    yield from leftovers.local("staged files", place.root / "staging", "*", before.timestamp())
    yield from leftovers.local("work folders", place.root / "work", "*", before.timestamp())
    for cache in wishes.caches:
        yield from leftovers.local("half-made base policies", cache, "making-*", before.timestamp())
    named = pruning.named(place)
    for path, files in leftovers.checkpoints(store).items():
        size, stored = sum(file.size for file in files), tuple(file.location for file in files)
        if path in pruned:
            yield Leftover("pruned checkpoints", size, place.root / path, stored)
        elif path not in named and max(file.modified for file in files) < before:
            yield Leftover("unreferenced checkpoints", size, place.root / path, stored)
    needed = pruning.needed(place)
    for empty in leftovers.local("empty folders", place.root / "policies", "*", before.timestamp()):
        if empty.local is not None and f"policies/{empty.local.name}" not in needed and not _holds(empty.local):
            yield empty  # a kill came between its files and the folder


def _holds(folder: Path) -> bool:
    return any(not path.is_dir() for path in (folder, *folder.rglob("*")))


def _summed(removed: Sequence[Leftover]) -> list[Freed]:
    kinds = dict.fromkeys(leftover.kind for leftover in removed)
    return [
        Freed(kind, sum(of.kind == kind for of in removed), sum(of.bytes for of in removed if of.kind == kind))
        for kind in kinds
    ]
