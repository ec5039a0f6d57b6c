"""`strop lineage | explain`: where a row of the lake comes from, and what came of it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Optional

import typer

from strop.flows import options, output
from strop.flows.cli_lake import check_form

FORMS = ("tree", "json", "mermaid")

Id = Annotated[
    str,
    typer.Argument(
        help="Id of any row; name or hash of a policy, recipe or shard; a run; or kind:id, e.g. recipe:default.",
        metavar="ID",
    ),
]


def lineage(
    name: Id,
    lake: options.Lake = options.LAKE,
    when: options.AsOf = None,
    run: options.OfRun = None,
    up: Annotated[bool, typer.Option("--up", help="Only what it was made from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what it led to.")] = False,
    depth: Annotated[
        Optional[int],  # noqa: UP045 - typer reads this at import on every Python we support
        typer.Option("--depth", min=0, help="Follow every link this many steps; default: those that tell its story."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Members shown of a group.")] = 3,
    form: Annotated[str, typer.Option("--format", help="tree, json or mermaid.")] = "tree",
) -> None:
    """Tell what a row was made from, and what it led to.

    Walks both ways between policy, example, pair, rollout, score, decision,
    problem, plan, context, metric, stage run, run, recipe, seed and code.
    """
    from strop.flows import lineage_text
    from strop.storage.console import open_console
    from strop.storage.lineage import trace

    check_form(form, FORMS)
    with open_console(lake, snapshot=options.snapshot(lake, when, run)) as console:
        found = trace(console, name, limit=limit, depth=depth, up=up or not down, down=down or not up)
    above, below = found.up, found.down
    if form == "json":
        parts = {"up": above, "down": below}
        print(output.as_json({way: dataclasses.asdict(node) for way, node in parts.items() if node is not None}))
        return
    if form == "mermaid":
        print(lineage_text.mermaid(above, below))
        return
    root = above or below
    assert root is not None
    print(lineage_text.head(root))
    for title, node in (("made from", above), ("led to", below)):
        if node is not None:
            print("\n" + lineage_text.tree(title, node))


def explain(
    name: Id,
    lake: options.Lake = options.LAKE,
    when: options.AsOf = None,
    run: options.OfRun = None,
    json: options.Json = False,
) -> None:
    """Say in sentences why a row exists and what came of it.

    Every number is read from the lake; what it does not know is not said.
    """
    from strop.storage.console import open_console
    from strop.storage.explain import explain as explained

    with open_console(lake, snapshot=options.snapshot(lake, when, run)) as console:
        told = explained(console, name)
    if json:
        print(output.as_json(dataclasses.asdict(told)))
        return
    print("\n".join(told.lines))
