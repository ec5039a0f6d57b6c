"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

LAKE = Path("lake")

Lake = Annotated[
    Path, typer.Option("--lake", envvar="STROP_LAKE", help="Folder of the lake.", show_default="./lake", dir_okay=True)
]
Recipe = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this at import on every Python we support
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Override a setting, e.g. generate.n=16. May be repeated."),
]
RunId = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--run-id", metavar="ID", help="The run to start or continue; from recipe and seed when left out."),
]
Seed = Annotated[Optional[int], typer.Option("--seed", help="Seed of the run, instead of the recipe's.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
