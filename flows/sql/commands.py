"""The console's own commands, those that begin with a backslash."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strop.flows import formats
from strop.flows.sql.session import Session
from strop.flows.sql.work import Quit
from strop.storage import as_of
from strop.storage.errors import LakeError, did_you_mean

RUNS = """
SELECT r.run_id, r.recipe, r.seed, s.round, s.at AS last_commit FROM runs r LEFT JOIN (
  SELECT run_id, max(round) AS round, max(started_at + to_microseconds(CAST(seconds * 1e6 AS BIGINT))) AS at
  FROM stage_runs GROUP BY run_id) s USING (run_id)
ORDER BY r.created_at, r.run_id"""
SWITCH = {"on": True, "off": False}


@dataclass(frozen=True, slots=True)
class Command:
    """What follows a backslash."""

    arguments: str
    doc: str
    run: Callable[[Session, str], None]


def command(session: Session, line: str) -> None:
    """Run a line such as `\\d rollouts`. Raises LakeError for an unknown one or a wrong argument, Quit for `\\q`."""
    name, _, argument = line.removeprefix("\\").rstrip("; ").partition(" ")
    if name not in COMMANDS:
        raise LakeError(f"there is no command \\{name}{did_you_mean(name, COMMANDS)}; \\? lists them")
    COMMANDS[name].run(session, argument.strip())


def _describe(session: Session, name: str) -> None:
    tables = {table.name: table for table in session.console().tables()}
    if not name:
        rows = [(t.name, "view" if t.rows is None else "table", t.rows, t.doc) for t in tables.values()]
        session.show(formats.Fixed(["name", "kind", "rows", "what it is"], ["", "", "BIGINT", ""], rows))
        return
    table = tables.get(name.strip('"').lower())
    if table is None:
        raise LakeError(f"the lake has no table {name!r}{did_you_mean(name, tables)}")
    columns = [(c.name, c.sql_type, c.doc) for c in table.columns]
    session.show(formats.Fixed(["column", "type", "what it is"], ["", "", ""], columns))


def _runs(session: Session, argument: str) -> None:
    found = session.console().query(RUNS)
    session.show(formats.Fixed(found.columns, found.types, found.rows))


def _timing(session: Session, argument: str) -> None:
    session.timing = _switched(session.timing, argument)
    session.screen.show([f"timing is {'on' if session.timing else 'off'}\n"])


def _expanded(session: Session, argument: str) -> None:
    session.expanded = None if argument == "auto" else _switched(bool(session.expanded), argument)
    said = {None: "auto: where a table is too wide", True: "on", False: "off"}[session.expanded]
    session.screen.show([f"rows as lines of `column | value`: {said}\n"])


def _switched(now: bool, argument: str) -> bool:
    if argument and argument not in SWITCH:
        raise LakeError(f"expected on or off, got {argument!r}")
    return SWITCH.get(argument, not now)


def _format(session: Session, argument: str) -> None:
    if argument and argument not in formats.FORMATS:
        raise LakeError(f"there is no format {argument!r}{did_you_mean(argument, formats.FORMATS)}")
    session.form = argument or session.form
    session.screen.show([f"format is {session.form}\n"])


def _output(session: Session, argument: str) -> None:
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise LakeError(f"cannot read {argument!r}: {error}") from error
    session.force = "--force" in words
    names = [word for word in words if word != "--force"]
    if len(names) > 1:
        raise LakeError(f"\\o takes one file, got {len(names)}; quote a name with spaces")
    session.output = Path(names[0]).expanduser() if names else None
    where = f"{session.output}" if session.output else "this terminal"
    session.screen.show([f"the next result goes to {where}\n"])


def _as_of(session: Session, argument: str) -> None:
    if argument in ("newest", "latest", "now"):
        session.pinned = None
    elif argument:
        session.pinned = as_of.find(session.lake, argument)
    told = f"every statement sees {session.pinned}" if session.pinned else "each statement sees the newest snapshot"
    session.screen.show([told + "\n"])


def _help(session: Session, argument: str) -> None:
    heads = [f"\\{name} {c.arguments}".rstrip() for name, c in COMMANDS.items()]
    width = max(map(len, heads))
    lines = [f"{head:<{width}}  {c.doc}\n" for head, c in zip(heads, COMMANDS.values(), strict=True)]
    session.screen.show(["A statement ends with a semicolon. Tab completes; Ctrl-C cancels; Ctrl-D leaves.\n", *lines])


def _quit(session: Session, argument: str) -> None:
    raise Quit


COMMANDS = {
    "d": Command("[TABLE]", "tables and views, or the columns of one", _describe),
    "l": Command("", "runs of the lake", _runs),
    "asof": Command("[WHEN]", "see an earlier moment: round=3, RUN@3, snapshot=41, 2 hours ago, newest", _as_of),
    "format": Command("[FORMAT]", f"{', '.join(formats.FORMATS)}", _format),
    "o": Command("[FILE [--force]]", "write the next result to a file, by default in the format of its name", _output),
    "x": Command("[on|off|auto]", "each value on a line of its own", _expanded),
    "timing": Command("[on|off]", "how long a query took", _timing),
    "?": Command("", "this list", _help),
    "q": Command("", "leave", _quit),
}
