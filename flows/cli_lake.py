"""`strop status | show`: what the lake knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from strop.flows import options, output
from strop.storage.errors import LakeError, StropError, did_you_mean

if TYPE_CHECKING:
    from strop.flows.runs import RunState


def status(
    run_id: Annotated[Optional[str], typer.Argument(help="Only this run, with its rounds.")] = None,  # noqa: UP045
    lake: options.Lake = options.LAKE,
    when: options.AsOf = None,
    run: options.OfRun = None,
    json: options.Json = False,
) -> None:
    """List the runs of the lake.

    How far each is, its champion, and whether a process drives it now.
    """
    from strop.flows import report, runs

    found = runs.states(lake, snapshot=options.snapshot(lake, when, run or (run_id if when else None)))
    if run_id is not None:
        by_id = {state.run_id: state for state in found}
        if run_id not in by_id:
            raise LakeError(f"the lake {lake} has no run {run_id!r}{did_you_mean(run_id, by_id)}")
        found = [by_id[run_id]]
    if json:
        print(output.as_json([_plain(state) for state in found]))
        return
    if not found:
        print(f"{lake} has no runs yet; start one with: strop run --lake {lake}")
        return
    columns = ["run", "recipe", "seed", "round", "last stage", "at", "pass@1 by round", "champion", "driven by"]
    lines = [_line(state) for state in found]
    if any(state.reuses for state in found):
        columns.append("re-uses")
        lines = [[*line, runs.reused(state)] for line, state in zip(lines, found, strict=True)]
    output.table(columns, lines, right=[2, 3])
    if run_id is not None:
        print()
        report.print_rounds(found[0])


def _line(state: RunState) -> list[str]:
    marks = [state.rounds[r].metrics.get("pass@1", (None,))[0] for r in sorted(state.rounds)]
    return [
        state.run_id,
        state.recipe,
        str(state.seed),
        str(state.round),
        state.stage or "",
        "" if state.at is None else f"{state.at:%Y-%m-%d %H:%M}",
        " ".join("-" if m is None else f"{m:.2f}" for m in marks),
        state.champion or "",
        f"process {state.driver['pid']} on {state.driver['host']}" if state.driver else "nobody",
    ]


def _plain(state: RunState) -> dict[str, Any]:
    rounds = [
        {
            "round": row.round,
            "metrics": {n: {"value": v, "ci_low": lo, "ci_high": hi} for n, (v, lo, hi) in row.metrics.items()},
            "kept": row.kept,
            "judged": row.judged,
            "gate": row.action,
            "reason": row.reason,
            "seconds": round(row.seconds, 3),
            "tokens": row.tokens,
        }
        for row in (state.rounds[r] for r in sorted(state.rounds))
    ]
    return {
        "run_id": state.run_id,
        "recipe": state.recipe,
        "seed": state.seed,
        "created_at": state.created_at,
        "round": state.round,
        "stage": state.stage,
        "at": state.at,
        "champion": state.champion,
        "reuses": state.reuses,
        "driver": state.driver,
        "rounds": rounds,
    }


def show(
    name: Annotated[str, typer.Argument(help="Id of a rollout, problem, policy or any other row.", metavar="ID")],
    lake: options.Lake = options.LAKE,
    when: options.AsOf = None,
    run: options.OfRun = None,
    json: options.Json = False,
) -> None:
    """Print one row of the lake.

    Every column that has a value, then what scorers, filters and gates said of it.
    """
    from strop.storage.console import open_console

    with open_console(lake, snapshot=options.snapshot(lake, when, run)) as console:
        number = find_id(console, name)
        table, row = find_row(console, number, lake)
        said = _said(console, number)
    if json:
        print(output.as_json({"table": table, **row, "said": said}))
        return
    width = max(map(len, row))
    print(f"{table} {name}")
    for key, value in row.items():
        if value is not None and value != []:
            text = str(value)
            print(f"  {key:<{width}}  {text if chr(10) not in text else chr(10) + _indented(text)}")
    for item in said:
        print(f"  {item['what']:<{width}}  {item['verdict']}" + (f": {item['reason']}" if item["reason"] else ""))


def check_form(form: str, known: tuple[str, ...]) -> None:
    """Raises a usage error for a format there is not."""
    if form not in known:
        raise typer.BadParameter(f"{form!r}{did_you_mean(form, known)}", param_hint="--format")


def find_id(console: Any, name: str) -> int:
    """The id a user means: a number, or the name of a policy. Raises LakeError."""
    from strop.storage.views import literal

    if name.isdecimal():
        return int(name)
    rows = console.query(f"SELECT policy_id FROM policies WHERE name = {literal(name)} ORDER BY policy_id DESC").rows
    if not rows:
        names = [row[0] for row in console.query("SELECT DISTINCT name FROM policies").rows]
        raise LakeError(f"{console.root} has no policy {name!r}{did_you_mean(name, names)}; other rows go by their id")
    return int(rows[0][0])


def find_row(console: Any, number: int, lake: Path) -> tuple[str, dict[str, Any]]:
    """The table and the row of an id."""
    from strop.storage.tables import TABLES

    for row in TABLES:
        if row.ID is not None:
            result = console.query(f"SELECT * FROM {row.TABLE} WHERE {row.ID} = {number}")
            if result.rows:
                return row.TABLE, dict(zip(result.columns, result.rows[0], strict=True))
    raise StropError(f"{lake} has no row with the id {number}")


def _said(console: Any, number: int) -> list[dict[str, Any]]:
    """Scores and decisions about a row."""
    scores = console.query(
        f"SELECT scorer, coalesce(verdict, value::VARCHAR), reason FROM scores WHERE subject_id = {number}"
    )
    decisions = console.query(
        f"SELECT decider, coalesce(action, CASE WHEN keep THEN 'keep' ELSE 'drop' END), reason "
        f"FROM decisions WHERE subject_id = {number}"
    )
    return [{"what": w, "verdict": v, "reason": r} for w, v, r in [*scores.rows, *decisions.rows]]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
