"""`strop diff`: what changed between two rounds."""

from __future__ import annotations

from typing import Annotated

import typer

from strop.flows import options, output


def diff(
    left: Annotated[
        str, typer.Argument(help="RUN@K, or RUN for its newest round; K where there is one run.", metavar="RUN@K")
    ],
    right: Annotated[str, typer.Argument(help="The round to compare with it.", metavar="RUN@L")],
    lake: options.Lake = options.LAKE,
    show: Annotated[
        int, typer.Option("--show", min=0, help="Print so many problems that gained and lost most, with completions.")
    ] = 0,
    json: options.Json = False,
) -> None:
    """Tell what changed between two rounds, of one run or of two.

    Settings, plugins, policies, metrics, problems, and the pass rates problem by problem.
    """
    import dataclasses

    from strop.flows.diff import report
    from strop.flows.diff.compare import compare
    from strop.flows.diff.examples import examples
    from strop.storage.console import open_console

    with open_console(lake) as console:
        found = compare(console, left, right)
        shown = examples(console, found, show)
    if json:
        shown_as = [dataclasses.asdict(example) for example in shown]
        print(output.as_json({**dataclasses.asdict(found), "examples": shown_as}))
        return
    report.show(found, shown)
