"""`strop fsck | gc`: care of the store."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from strop.flows import options, output

if TYPE_CHECKING:
    from strop.storage.fsck import Audit
    from strop.storage.gc import Freed

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
UNIT = ("bytes", "kB", "MB", "GB", "TB")


def fsck(
    lake: options.Lake = options.LAKE,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes, catalog and ledger only: read no file whole.")] = False,
    json: options.Json = False,
) -> int:
    """Check that everything in the lake is what was written.

    Names every damaged data file, checkpoint, catalog entry and row. Changes nothing; exit code 1 when there is damage.
    """
    from strop.storage.fsck import fsck as audit_of

    with _progress() as show:
        audit = audit_of(lake, quick=quick, on_progress=show)
    if json:
        print(output.as_json({**dataclasses.asdict(audit), "damaged": audit.damaged}))
    else:
        _tell(audit)
    return 1 if audit.damaged else 0


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A line on a terminal that says what is being looked at, how far that is and how long it may take."""
    began: dict[str, float] = {}
    shown = [0.0]

    def show(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        seconds = now - began.setdefault(what, now)
        if sys.stderr.isatty() and now - shown[0] > 0.2:
            shown[0] = now
            left = f", {seconds * (total - done) / done:.0f} s left" if done and seconds > 1 else ""
            amount = f"{bytes_text(done)} of {bytes_text(total)}" if what == "data files" else f"{done} of {total}"
            print(f"\r\033[K{what}: {amount}{left}", end="", file=sys.stderr, flush=True)

    yield show
    if shown[0]:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _tell(audit: Audit) -> None:
    for finding in audit.findings:
        print(f"{'DAMAGED' if finding.damage else 'note'}: {finding.kind} {finding.where}: {finding.problem}")
        if finding.advice:
            print(f"  {finding.advice}")
    looked = f"{audit.files} data files ({bytes_text(audit.bytes)}), {audit.checkpoints} checkpoints, {audit.rows} rows"
    damaged = sum(finding.damage for finding in audit.findings)
    how = "sizes, catalog and ledger of " if audit.quick else ""
    print(f"{audit.lake}: looked at {how}{looked}: {f'{damaged} damages' if damaged else 'no damage'}")


def gc(
    lake: options.Lake = options.LAKE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell what would go.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Take only what was left alone for as long: 1d, 12h.")
    ] = "1d",
    keep_snapshots: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--keep-snapshots",
            metavar="N|AGE",
            help="How far time travel reaches: the newest N snapshots, or those of the last 30d. All when left out.",
        ),
    ] = None,
    checkpoints: Annotated[
        str,
        typer.Option(
            "--checkpoints",
            metavar="WHICH",
            help="unreferenced; or drop the weights of policies that are rejected, or all that are not-champion.",
        ),
    ] = "unreferenced",
    json: options.Json = False,
) -> None:
    """Take out what nobody needs.

    Merges small files, and removes merged files, leftovers of killed processes and checkpoints of no policy.
    """
    from strop.core.prepare import cache_dir
    from strop.storage.gc import Wishes
    from strop.storage.gc import gc as take_out

    keep = None if keep_snapshots is None else number_or_age(keep_snapshots, "--keep-snapshots")
    wishes = Wishes(age(older_than, "--older-than"), keep, checkpoints, [cache_dir() / "base"])
    freed = take_out(lake, wishes, dry_run=dry_run)
    if json:
        total = sum(of.bytes for of in freed)
        print(output.as_json({"dry_run": dry_run, "bytes": total, "freed": [dataclasses.asdict(of) for of in freed]}))
    else:
        _table(freed, dry_run=dry_run)


def _table(freed: list[Freed], *, dry_run: bool) -> None:
    rows: list[list[Any]] = [[of.kind, str(of.count), bytes_text(of.bytes)] for of in freed if of.count]
    if not rows:
        print("nothing to take out")
        return
    rows.append(["together", "", bytes_text(sum(of.bytes for of in freed))])
    output.table(["would go" if dry_run else "gone", "number", "size"], rows, right=[1, 2])


def age(text: str, option: str) -> datetime.timedelta:
    """'1d', '12h', '90m' or '0' as a length of time. Raises a usage error."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])|0", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no age: write it like 30m, 12h or 1d", param_hint=option)
    return datetime.timedelta(**{UNITS[match[2]]: float(match[1])}) if match[2] else datetime.timedelta()


def number_or_age(text: str, option: str) -> int | datetime.timedelta:
    """'10' as a number, else an age. Raises a usage error."""
    if text.strip().isdecimal():
        if int(text) < 1:
            raise typer.BadParameter("the newest snapshot is always kept: write 1 or more", param_hint=option)
        return int(text)
    return age(text, option)


def bytes_text(number: float) -> str:
    """Bytes as a person says them."""
    unit = 0
    while number >= 1000 and unit < len(UNIT) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {UNIT[unit]}" if unit == 0 or number >= 100 else f"{number:.1f} {UNIT[unit]}"
