"""`strop status | sql | lineage | show`: what the lake knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from strop.flows import options, output
from strop.storage.errors import LakeError, StropError, did_you_mean

if TYPE_CHECKING:
    from strop.flows.runs import RunState
    from strop.storage.nodes import Node

ONLY_JSON = frozenset({"key", "path", "content_hash", "recipe_hash", "code_version", "started_at", "problem_key"})
"""Facts of a lineage that would bury the tree; `--format json` and `strop show` have them."""

Form = Annotated[str, typer.Option("--format", help="table, json or csv.")]


def status(
    run_id: Annotated[Optional[str], typer.Argument(help="Only this run, with its rounds.")] = None,  # noqa: UP045
    lake: options.Lake = options.LAKE,
    json: options.Json = False,
) -> None:
    """List the runs of the lake.

    How far each is, its champion, and whether a process drives it now.
    """
    from strop.flows import report, runs

    found = runs.states(lake)
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


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the lake's tables.", metavar="SELECT")],
    lake: options.Lake = options.LAKE,
    form: Form = "table",
) -> None:
    """Ask the lake in SQL.

    Only reads, sees one snapshot, and never waits for a run that writes.
    """
    from strop.storage.console import open_console

    check_form(form, output.FORMATS)
    with open_console(lake) as console:
        result = console.query(query)
    output.rows(result.columns, result.rows, form)


def lineage(
    name: Annotated[str, typer.Argument(help="Id of any row, a run, or name or hash of a policy.", metavar="ID")],
    lake: options.Lake = options.LAKE,
    form: Annotated[str, typer.Option("--format", help="tree or json.")] = "tree",
) -> None:
    """Tell what made a row, and what it made.

    Walks both ways between policy, example, rollout, problem, verifier and seed.
    """
    import dataclasses

    from strop.storage.console import open_console
    from strop.storage.lineage import trace

    check_form(form, ("tree", "json"))
    with open_console(lake) as console:
        found = trace(console, name)
    if form == "json":
        print(output.as_json(dataclasses.asdict(found)))
        return
    print(f"made from\n{tree(found.up)}")
    print(f"\nled to\n{tree(found.down)}")


def show(
    name: Annotated[str, typer.Argument(help="Id of a rollout, problem, policy or any other row.", metavar="ID")],
    lake: options.Lake = options.LAKE,
    json: options.Json = False,
) -> None:
    """Print one row of the lake.

    Every column that has a value, then what scorers, filters and gates said of it.
    """
    from strop.storage.console import open_console

    with open_console(lake) as console:
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


def tree(node: Node, prefix: str = "", *, last: bool = True, root: bool = True) -> str:
    """The lineage as an indented tree, one row a line."""
    facts = ", ".join(f"{k} {output.cell(v)}" for k, v in node.facts.items() if k not in ONLY_JSON)
    relation = f"{node.relation} " if node.relation else ""
    id = f" {node.id}" if node.id and node.id not in node.label else ""
    head = f"{relation}{node.kind}{id}: {output.cell(node.label)}" + (f"  ({facts})" if facts else "")
    lines = [head if root else f"{prefix}{'└─ ' if last else '├─ '}{head}"]
    inner = "" if root else prefix + ("   " if last else "│  ")
    for i, child in enumerate(node.children):
        lines.append(tree(child, inner, last=i == len(node.children) - 1 and not node.more, root=False))
    if node.more:
        lines.append(f"{inner}└─ ... and {node.more} more")
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
