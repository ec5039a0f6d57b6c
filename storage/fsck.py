"""The audit of a lake: is everything still what was written, and does it hold together? Changes nothing.

Files are compared with the checksums kept when they were written, checkpoints with the hash in their policy's row,
the catalog with itself, with the files and with today's tables, rows with the ledger and with each other.
What cannot be told: a change of a value in the catalog that is still consistent with all of these (see docs/care.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from strop.storage import fsck_bounds, fsck_catalog, fsck_rows
from strop.storage.catalog_db import open_catalog_db
from strop.storage.checkpoints import is_pruned, is_stored, stored_hash
from strop.storage.checksums import StoredFile, are_kept, damage_report, damages, stored_files
from strop.storage.console import Console, open_console
from strop.storage.errors import LakeError
from strop.storage.ids import in_file_name
from strop.storage.place import Place, place_of

OnProgress = Callable[[str, int, int], None]
"""What is being looked at, how much of it is done, and how much there is."""
POLICIES = """
SELECT path, content_hash, any_value(name), list(detail) FROM policies WHERE path <> '' GROUP BY path, content_hash"""
"""An imported policy has no path: nothing is stored of it but its name."""
COMMITTED = "SELECT 1 AS there FROM ducklake_snapshot_changes WHERE commit_extra_info LIKE :said LIMIT 1"
COPY = "put it back from a copy of the lake, byte for byte"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """'catalog', 'data file', 'checkpoint' or 'row'."""
    where: str
    """A path relative to the lake, or a table and id."""
    problem: str
    advice: str = ""
    damage: bool = True
    """False: worth knowing, and nothing is lost."""


@dataclass(slots=True)
class Audit:
    """What an audit looked at and found."""

    lake: str
    quick: bool
    snapshot: int | None = None
    files: int = 0
    bytes: int = 0
    checkpoints: int = 0
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict, repr=False)
    """Damaged files and their tables: reading one of them further may end the process."""
    unknown: set[str] = field(default_factory=set, repr=False)
    """Files without a checksum."""

    @property
    def damaged(self) -> bool:
        """Whether anything is lost or wrong."""
        return any(finding.damage for finding in self.findings)


def fsck(root: Path, *, quick: bool = False, on_progress: OnProgress = lambda what, done, total: None) -> Audit:
    """Audit a lake; `quick` compares sizes and looks at the catalog and the ledger, but reads no file whole.

    Raises LakeError when there is no lake.
    """
    place = place_of(root)
    audit = Audit(str(place), quick)
    for check in (_catalog, _files, _checkpoints, _rows, *(() if quick else (_bounds,))):
        try:
            for finding in check(place, audit, on_progress):
                if finding not in audit.findings:
                    audit.findings.append(finding)
        except Exception as error:  # what a damaged catalog does to the code that reads it cannot be foreseen
            if not place.exists:
                raise
            problem = f"cannot be understood: {type(error).__name__}: {error}"
            audit.findings.append(Finding("catalog", place.catalog or "catalog.sqlite", problem, COPY))
    return audit


def verify(place: Place, run_id: str) -> None:
    """Raises LakeError that names them when the catalog, or files that a run may read, are not what was written.

    Those files are the run's own and the merged ones; a run that has committed nothing has nothing to verify.
    Files of other runs, and those that have no checksum, are left out.
    """
    kept = are_kept(place)
    with open_catalog_db(place, write=False) as db:
        if not db.execute(COMMITTED, {"said": f"%{json.dumps({'run': run_id})[1:-1]}%"}):
            return
        files = [file for file in stored_files(db, kept=kept) if file.live]
    try:
        problem = next(fsck_catalog.problems(place, quick=True), None)
    except Exception as error:  # see `fsck`
        problem = f"it cannot be understood: {error}"
    if problem is not None:
        raise LakeError(
            f"the catalog of the lake {place} is damaged: {problem}. Put it back from a copy of the lake; "
            f"`strop fsck --lake {place}` tells more"
        )
    damaged = list(damages(place, [file for file in files if _run_of(file) in (None, in_file_name(run_id))]))
    if damaged:
        raise LakeError(damage_report(place, damaged))


def _run_of(file: StoredFile) -> str | None:
    """The folder of the run that wrote a file; None when it was merged."""
    folders = file.path.split("/")  # main/<table>/<run>/r<round>/<file>, and main/<table>/<file> of merged ones
    return folders[2] if len(folders) == 5 else None


def _catalog(place: Place, audit: Audit, on_progress: OnProgress) -> Iterator[Finding]:
    on_progress("catalog", 0, 1)
    for problem in fsck_catalog.problems(place, quick=audit.quick):
        yield Finding("catalog", place.catalog or "catalog.sqlite", problem, COPY)
    on_progress("catalog", 1, 1)


def _files(place: Place, audit: Audit, on_progress: OnProgress) -> Iterator[Finding]:
    kept = are_kept(place)
    with open_catalog_db(place, write=False) as db:
        files = stored_files(db, kept=kept)
    audit.files, audit.bytes = len(files), sum(file.bytes for file in files)
    done = 0
    for file in files:
        on_progress("data files", done, audit.bytes)
        for damaged, what in damages(place, [file], quick=audit.quick):
            if _is_still_needed(place, damaged):
                audit.unreadable[file.path] = file.table
                yield Finding("data file", f"data/{file.path}", f"{what}; {fsck_catalog.content(file)}", COPY)
        done += file.bytes
    on_progress("data files", done, audit.bytes)
    audit.unknown = {file.path for file in files if file.hash is None}
    if audit.unknown:
        yield Finding(
            "data file",
            "data",
            f"{len(audit.unknown)} files have no checksum: an older Strop wrote them, or a process that was killed; "
            "of those only sizes can be compared",
            "`strop gc` records what they are now",
            damage=False,
        )


def _bounds(place: Place, audit: Audit, on_progress: OnProgress) -> Iterator[Finding]:
    skip = audit.unknown | set(audit.unreadable)
    for problem in fsck_bounds.problems(place, skip, lambda done, total: on_progress("statistics", done, total)):
        yield Finding("catalog", place.catalog or "catalog.sqlite", problem, COPY)


def _is_still_needed(place: Place, file: StoredFile) -> bool:
    """False: it has been merged and removed since the list was made."""
    with open_catalog_db(place, write=False) as db:
        return any(file.path == now.path for now in stored_files(db, kept=False))


def _checkpoints(place: Place, audit: Audit, on_progress: OnProgress) -> Iterator[Finding]:
    if "policies" in audit.unreadable.values():
        yield Finding("checkpoint", "policies", "not checked: files of the table policies are damaged", COPY)
        return
    with open_console(place.root) as console:
        policies = console.query(POLICIES).rows
    policies = [row for row in policies if not any(is_pruned(detail) for detail in row[3])]
    for done, (path, content_hash, name, _) in enumerate(policies):
        on_progress("checkpoints", done, len(policies))
        audit.checkpoints += 1
        if not is_stored(place, path):
            yield Finding("checkpoint", path, f"the checkpoint of {name} is gone", COPY)
        elif not audit.quick and (found := stored_hash(place, path)) != content_hash:
            problem = f"the checkpoint of {name} hashes to {found[:16]}, stored was {content_hash[:16]}"
            yield Finding("checkpoint", path, problem, COPY)
    on_progress("checkpoints", len(policies), len(policies))


def _rows(place: Place, audit: Audit, on_progress: OnProgress) -> Iterator[Finding]:
    with open_console(place.root) as console:
        audit.snapshot = console.snapshot
        checks = fsck_rows.quick(console) if audit.quick else fsck_rows.full(console)
        yield from _asked(console, checks, audit, on_progress)


def _asked(
    console: Console, checks: Sequence[fsck_rows.Check], audit: Audit, on_progress: OnProgress
) -> Iterator[Finding]:
    audit.rows = sum(table.rows or 0 for table in console.tables())
    for done, check in enumerate(checks):
        on_progress("rows", done, len(checks))
        damaged = sorted(check.tables & set(audit.unreadable.values()))
        if damaged:
            yield Finding("row", check.table, f"not checked ({check.about}): files of {', '.join(damaged)} are damaged")
            continue
        try:
            found: Iterable[tuple[object, ...]] = console.query(check.sql, timeout_s=3600).rows
        except LakeError as error:
            yield Finding("row", check.table, f"cannot be checked ({check.about}): {error}", COPY)
            continue
        for row in found:
            yield Finding("row", check.table, check.problem.format(*row), check.advice)
    on_progress("rows", len(checks), len(checks))
