"""Which snapshot a user means: `round=3`, `RUN@3`, `snapshot=41`, `time=2026-11-21T12:00`, `2 hours ago`.

    snapshot = resolve(Path("lake"), "round=3")

The snapshot of a round is the one after its last commit and before any commit of a later round of that run, so that
what a later re-verification adds to the round is not in it. Times without a zone are UTC, as the lake prints them; a
bare date means the end of that day.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strop.storage.catalog import history
from strop.storage.errors import LakeError, did_you_mean

FORMS = "round=3, RUN@3, snapshot=41, time=2026-11-21T12:00, '2 hours ago' or newest"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)[a-z]*(?:\s+ago)?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the lake, and the commit that made it."""

    id: int
    at: datetime.datetime
    run: str | None
    round: int | None
    stage: str | None
    message: str
    """What the commit said of itself; for one that said nothing, what DuckLake noted of it."""

    def __str__(self) -> str:
        what = f"round {self.round} of {self.run}, {self.stage}" if self.run else self.message
        return f"snapshot {self.id} ({self.at:%Y-%m-%d %H:%M:%S} UTC): {what}"


def snapshots(root: Path) -> list[Snapshot]:
    """Every snapshot that has not expired, oldest first. Raises LakeError when there is no lake."""
    found = []
    for id, at, message, extra, changes in history(root):
        made = json.loads(extra) if extra else {}
        time = datetime.datetime.fromisoformat(str(at))
        time = time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)
        run, round, stage = made.get("run") or None, made.get("round"), made.get("stage")
        found.append(Snapshot(int(id), time, run, round, stage, message or changes or ""))
    return found


def resolve(root: Path, text: str, run_id: str | None = None) -> int:
    """The id of the snapshot that `text` names; see `find`."""
    return find(root, text, run_id).id


def find(root: Path, text: str, run_id: str | None = None) -> Snapshot:
    """The snapshot that `text` names; a bare `round=K` is of `run_id`, else of the run that got there last.

    Raises LakeError that lists what there is when it is not there (any more), or cannot be understood.
    """
    known = snapshots(root)
    text = text.strip()
    key, equals, value = (part.strip() for part in text.partition("="))
    run, at, number = text.rpartition("@")
    if text.lower() in ("newest", "latest", "now"):
        return known[-1]
    if (equals and key == "snapshot" and value.isdecimal()) or text.isdecimal():
        return _numbered(known, int(value or text), root)
    if equals and key == "round" and value.isdecimal():
        return _of_round(known, int(value), run_id, root)
    if at and number.isdecimal():
        return _of_round(known, int(number), run.removeprefix("round="), root)
    moment = _moment(value if equals and key == "time" else text)
    if moment is None:
        raise LakeError(f"{text!r} names no snapshot: write {FORMS}")
    before = [snapshot for snapshot in known if snapshot.at <= moment]
    if not before:
        raise LakeError(
            f"the lake {root} has no snapshot as old as {moment:%Y-%m-%d %H:%M:%S} UTC; the first is {known[0]}"
        )
    return before[-1]


def _numbered(known: Sequence[Snapshot], number: int, root: Path) -> Snapshot:
    for snapshot in known:
        if snapshot.id == number:
            return snapshot
    gone = "has expired" if known[0].id <= number < known[-1].id or number < known[0].id else "was never made"
    raise LakeError(f"the lake {root} has no snapshot {number}, it {gone}; there are {_ranges([s.id for s in known])}")


def _of_round(known: Sequence[Snapshot], round: int, run_id: str | None, root: Path) -> Snapshot:
    reached: dict[str, int] = {}
    rounds: dict[str, set[int]] = {}
    found: dict[str, Snapshot] = {}
    for snapshot in known:
        if snapshot.run is None or snapshot.round is None:
            continue
        furthest = max(snapshot.round, reached.get(snapshot.run, 0))
        reached[snapshot.run] = furthest
        if snapshot.round == furthest:
            rounds.setdefault(snapshot.run, set()).add(snapshot.round)
            if snapshot.round == round and run_id in (None, snapshot.run):
                found[snapshot.run] = snapshot
    if found:
        return max(found.values(), key=lambda snapshot: snapshot.id)
    there = "; ".join(f"{run} has rounds {_ranges(sorted(of))}" for run, of in sorted(rounds.items()))
    if run_id is not None and run_id not in rounds:
        raise LakeError(f"the lake {root} has no run {run_id!r}{did_you_mean(run_id, rounds)}")
    expired = any(round < min(of) for run, of in rounds.items() if run_id in (None, run))
    raise LakeError(
        f"no snapshot of round {round}{f' of {run_id}' if run_id else ''} in {root}"
        f"{', it has expired' if expired else ''}: {there or 'it is empty'}"
    )


def _moment(text: str) -> datetime.datetime | None:
    """The moment a text names, in UTC; None when it names none."""
    if ago := AGO.fullmatch(text.strip().lower()):
        return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=float(ago[1]) * UNITS[ago[2]])
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", text):
        moment = datetime.datetime.combine(moment, datetime.time.max)
    return moment.astimezone(datetime.UTC) if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _ranges(numbers: Sequence[int]) -> str:
    """'1-3, 7' of 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
