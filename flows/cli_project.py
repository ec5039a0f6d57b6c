"""`strop init | doctor`: start a project, and find out what is wrong with this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from strop.flows import options, output
from strop.storage.errors import StropError


def init(folder: Annotated[Path, typer.Argument(help="Folder to make, e.g. my-loop.")]) -> None:
    """Write a project to start from.

    A recipe, a verifier of your own, problems, and a test that passes.
    """
    from strop.flows import starter, templates

    if folder.exists() and any(folder.iterdir()):
        raise StropError(f"{folder} exists and is not empty; name a new folder")
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_") or "my-loop"
    files = starter.files(name)
    templates.write(files, folder)
    for file in files:
        print(folder / file)
    output.say(f"\ntry:\n  cd {folder}\n  pytest\n  strop run recipe.yaml")


def doctor(lake: options.Lake = options.LAKE, json: options.Json = False) -> int:
    """Check this installation and machine.

    A line for each thing looked at, with what to do. Exits with 1 when something fails.
    """
    from strop.flows import checks

    found = checks.run_all(lake)
    if json:
        print(output.as_json([{"check": c.name, "level": c.level, "found": c.found, "do": c.do} for c in found]))
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            print(f"{check.level:<4}  {check.name:<{width}}  {check.found}")
            if check.do:
                print(f"      {'':<{width}}  -> {check.do}")
    return 1 if any(check.level == "fail" for check in found) else 0
