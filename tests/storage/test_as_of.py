"""Which snapshot a user means."""

from __future__ import annotations

import datetime
import sqlite3
from pathlib import Path

import pytest
from lake_rows import ledger, rollouts

from strop.storage import as_of
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake

COMMITS = [("a", 0), ("a", 1), ("a", 1), ("b", 0), ("a", 2), ("b", 1), ("a", 1), ("a", 3)]
"""Run and round, in order; the seventh adds to a round that was long over, as a re-verification does."""


@pytest.fixture
def made(lake: Lake) -> list[int]:
    """The snapshots of COMMITS, the i-th at noon and i minutes of 2026-11-21."""
    found = [
        lake.commit(ledger(f"k{i}", run_id=run, round=round), rows={"rollouts": rollouts(1, first=i)})
        for i, (run, round) in enumerate(COMMITS)
    ]
    lake.close()
    with sqlite3.connect(lake.root / "catalog.sqlite") as catalog:
        for i, snapshot in enumerate(found):
            at = f"2026-11-21 12:{i:02d}:00.5+00"
            catalog.execute("UPDATE ducklake_snapshot SET snapshot_time = ? WHERE snapshot_id = ?", [at, snapshot])
        catalog.execute(
            "UPDATE ducklake_snapshot SET snapshot_time = '2026-11-20 08:00:00+00' WHERE snapshot_id < ?", [found[0]]
        )
    catalog.close()
    return [snapshot for snapshot in found if snapshot is not None]


@pytest.mark.parametrize(
    ("text", "run", "index"),
    [
        ("round=0", "a", 0),
        ("round=1", "a", 2),
        ("a@1", None, 2),
        ("a@2", None, 4),
        ("b@1", "a", 5),
        ("round=1", None, 5),
        ("round=2", None, 4),
        ("newest", None, 7),
        ("time=2026-11-21 12:03:01", None, 3),
        ("2026-11-21T14:03:01+02:00", None, 3),
        ("time=2026-11-21 12:03:00.5", None, 3),
        ("time=2026-11-21T12:03:00.4Z", None, 2),
        ("2026-11-21", None, 7),
        (" time = 1h ago ", None, 7),
    ],
)
def test_a_text_names_a_snapshot(
    lake: Lake, made: list[int], monkeypatch: pytest.MonkeyPatch, text: str, run: str | None, index: int
) -> None:
    monkeypatch.setattr(as_of, "datetime", _Clock)
    assert as_of.resolve(lake.root, text, run) == made[index]


class _Clock:
    """`datetime` on the day after."""

    UTC, time, timedelta = datetime.UTC, datetime.time, datetime.timedelta

    class datetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(2026, 11, 22, 1, tzinfo=tz)


def test_a_number_is_a_snapshot(lake: Lake, made: list[int]) -> None:
    assert as_of.resolve(lake.root, f"snapshot={made[3]}") == as_of.resolve(lake.root, str(made[3])) == made[3]


@pytest.mark.parametrize(
    ("text", "run", "reason"),
    [
        ("round=7", None, r"no snapshot of round 7 in .*: a has rounds 0-3; b has rounds 0-1"),
        ("a@7", None, r"no snapshot of round 7 of a in"),
        ("c@1", None, r"no run 'c'; there is: a, b"),
        ("snapshot=99", None, r"no snapshot 99, it was never made; there are 0-\d"),
        ("1999-01-01", None, r"no snapshot as old as 1999-01-01 .* the first is snapshot 0"),
        ("rond=1", None, r"'rond=1' names no snapshot: write round=3, "),
        ("", None, r"'' names no snapshot"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    lake: Lake, made: list[int], text: str, run: str | None, reason: str
) -> None:
    with pytest.raises(LakeError, match=reason):
        as_of.resolve(lake.root, text, run)


def test_an_expired_snapshot_is_said_to_be_gone(lake: Lake, made: list[int]) -> None:
    from strop.storage.lake import open_lake

    with open_lake(lake.root) as opened:
        opened.query(f"CALL ducklake_expire_snapshots('lake', versions => {[*range(made[3]), made[4]]})")
    left = f"{made[3]}, {made[5]}-{made[7]}"
    with pytest.raises(LakeError, match=f"no snapshot {made[4]}, it has expired; there are {left}"):
        as_of.resolve(lake.root, f"snapshot={made[4]}")
    with pytest.raises(LakeError, match=r"no snapshot of round 0 of a in .*, it has expired: a has rounds 1, 3; b has"):
        as_of.resolve(lake.root, "a@0")
    with pytest.raises(LakeError, match="as old as"):
        as_of.resolve(lake.root, "time=2026-11-21 12:02")


def test_a_snapshot_tells_what_made_it(lake: Lake, made: list[int]) -> None:
    found = as_of.find(lake.root, "a@2")
    assert (found.run, found.round, found.stage) == ("a", 2, "generate")
    assert str(found) == f"snapshot {made[4]} (2026-11-21 12:04:00 UTC): round 2 of a, generate"
    first = as_of.snapshots(lake.root)[0]
    assert (first.id, first.run) == (0, None)
    assert "created_schema" in str(first)


def test_before_its_tables_a_lake_cannot_be_asked(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"at snapshot 0 the lake .* had no tables yet"):
        open_console(Path(lake.root), snapshot=0)
