"""`strop sql | snapshots`: questions to the lake, now or as of an earlier moment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from strop.flows import options, output
from strop.storage.errors import LakeError, did_you_mean

if TYPE_CHECKING:
    from strop.flows.sql.session import Session

INTERRUPTED = 130


def sql(
    query: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="One SELECT, or a command such as '\\d rollouts'; a console opens without.", metavar="SELECT"
        ),
    ] = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-f", "--file", help="Read the statements from a file; - is standard input.", allow_dash=True),
    ] = None,
    lake: options.Lake = options.LAKE,
    form: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--format", help="table, csv, json, jsonl, markdown or parquet; else by the name of -o."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--output", help="Write the result to this file, whole or not at all."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let -o replace a file.")] = False,
    when: options.AsOf = None,
    run: options.OfRun = None,
    values: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("-p", "--param", metavar="NAME=VALUE", help="Value of $NAME in the query. May be repeated."),
    ] = None,
    expanded: Annotated[bool, typer.Option("-x", "--expanded", help="Each value on a line of its own.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds a query may take.")] = 300.0,
    memory_gb: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--memory-gb", min=0.1, help="Memory a query may take; half of the machine's by default."),
    ] = None,
) -> int:
    """Ask the lake in SQL.

    Only reads, sees one snapshot, and never waits for a run that writes. Without a query: an interactive console.
    """
    from strop.flows import formats
    from strop.flows.sql.session import Session
    from strop.flows.sql.work import Cancelled, bounded_memory

    if form is not None and form not in formats.FORMATS:
        raise typer.BadParameter(f"{form!r}{did_you_mean(form, formats.FORMATS)}", param_hint="--format")
    if query is not None and file is not None:
        raise typer.BadParameter("give a query or a file of queries, not both", param_hint="--file")
    text = query if query is not None else _read(file)
    memory_gb = memory_gb or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**31
    session = Session(
        lake,
        form=form or "table",
        expanded=True if expanded else None if text is None else False,
        pinned=options.pinned(lake, when, run),
        output=out,
        force=force,
        values=_values(values or []),
        timing=text is None,
        timeout_s=timeout_s,
        memory_gb=memory_gb,
    )
    try:
        with bounded_memory(memory_gb):
            return _interact(session) if text is None else _run(session, text)
    except Cancelled:
        output.say("interrupted")
        return INTERRUPTED
    finally:
        session.close()


def _interact(session: Session) -> int:
    from strop.flows.sql.shell import interact

    interact(session)
    return 0


def _run(session: Session, text: str) -> int:
    """Run the statements of a text one after another; the first that fails ends it."""
    from strop.flows.sql.text import Statement, statements
    from strop.flows.sql.work import Quit

    found = list(statements(text)) or [Statement(text, True)]
    if len(found) > 1 and (session.output is not None or session.form in ("csv", "json", "parquet")):
        raise LakeError(
            f"got {len(found)} statements, but a file, or {session.form}, holds the result of one: write one SELECT"
        )
    for i, statement in enumerate(found):
        if i:
            print()
        try:
            session.run(statement)
        except Quit:
            break
    return 0


def _read(file: Path | None) -> str | None:
    """The text of a file or of what is piped in; None when a person sits there."""
    try:
        if file is not None and str(file) != "-":
            return file.read_text(encoding="utf-8")
        if file is None and sys.stdin.isatty():
            return None
        return sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise LakeError(f"cannot read the query: {error}") from error


def _values(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{pair!r}: write NAME=VALUE, as in -p run=default-s0", param_hint="--param")
        found[name] = value
    return found


def snapshots(
    lake: options.Lake = options.LAKE,
    run: options.OfRun = None,
    last: Annotated[int, typer.Option("--last", min=1, help="Only the newest so many.")] = 50,
    json: options.Json = False,
) -> None:
    """List the moments of the lake that --as-of can name.

    One for every commit; the times are UTC.
    """
    import dataclasses

    from strop.storage import as_of

    known = [snapshot for snapshot in as_of.snapshots(lake) if run in (None, snapshot.run)]
    if run is not None and not known:
        runs = {snapshot.run for snapshot in as_of.snapshots(lake) if snapshot.run}
        raise LakeError(f"the lake {lake} has no run {run!r}{did_you_mean(run, runs)}")
    shown = known[-last:]
    if json:
        print(output.as_json([dataclasses.asdict(snapshot) for snapshot in shown]))
        return
    if len(shown) < len(known):
        output.say(f"the newest {len(shown)} of {len(known)}; --last {len(known)} lists all")
    lines = [
        [
            str(s.id),
            f"{s.at:%Y-%m-%d %H:%M:%S}",
            s.run or "",
            "" if s.round is None else str(s.round),
            s.stage or output.cell(s.message),
        ]
        for s in shown
    ]
    output.table(["snapshot", "time (UTC)", "run", "round", "what"], lines, right=[0, 3])
