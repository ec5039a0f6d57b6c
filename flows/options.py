"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from strop.storage.as_of import Snapshot

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
AsOf = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--as-of",
        metavar="WHEN",
        help="See the lake as it was: round=3, RUN@3, snapshot=41, time=2026-11-21T12:00, '2 hours ago'.",
    ),
]
OfRun = Annotated[Optional[str], typer.Option("--run", metavar="ID", help="The run whose round --as-of means.")]  # noqa: UP045


def pinned(lake: Path, when: str | None, run: str | None) -> Snapshot | None:
    """The snapshot that --as-of and --run mean, told on stderr; None for the newest. Raises LakeError."""
    if when is None:
        if run is not None:
            raise typer.BadParameter("it tells whose round --as-of means; give --as-of round=K too", param_hint="--run")
        return None
    from strop.flows.output import say
    from strop.storage.as_of import find

    found = find(lake, when, run)
    say(f"as of {found}")
    return found


def snapshot(lake: Path, when: str | None, run: str | None) -> int | None:
    """The id of that snapshot."""
    found = pinned(lake, when, run)
    return found.id if found else None
