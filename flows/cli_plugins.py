"""`strop plugins`: list them, explain one, start one of your own, check that it keeps its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from strop.flows import options, output
from strop.storage.errors import PluginError

app = typer.Typer(help="List, explain, start and check stage plugins.", no_args_is_help=True)

Stage = Annotated[str, typer.Argument(help="Kind of stage: verify, filter, generate, ...")]


@app.command("list")
def list_(
    stage: Annotated[Optional[str], typer.Argument(help="Only this kind of stage.")] = None,  # noqa: UP045
    json: options.Json = False,
) -> None:
    """List the plugins of every stage, built-in and installed. Imports none of them."""
    from strop.core.plugin import STAGES
    from strop.flows import plugin_check

    found = [
        {"stage": kind, "name": name, "origin": origin, "doc": doc}
        for kind in ([plugin_check.known(stage)] if stage else STAGES)
        for name, origin, doc in plugin_check.listed(kind)
    ]
    if json:
        print(output.as_json(found))
        return
    output.table(
        ["stage", "plugin", "origin", "what it does"], [[output.cell(v) for v in row.values()] for row in found]
    )


@app.command()
def show(stage: Stage, name: Annotated[str, typer.Argument(help="Plugin name, or ./file.py:function.")]) -> None:
    """Explain a plugin: where it comes from, its settings with their defaults, and what it is handed."""
    import inspect
    import sys

    from strop.core import registry
    from strop.core.plugin import STAGES
    from strop.flows import plugin_check

    plugin = registry.find(plugin_check.known(stage), name)
    module = sys.modules[plugin.function.__module__]
    print(f"{stage}: {plugin.name} (version {plugin.mark.version}, {plugin.origin})\n")
    print(inspect.cleandoc(module.__doc__ or "no docstring"))
    print("\nsettings:")
    for key, default, doc in plugin_check.settings(plugin.mark.config):
        print(f"  {key}{' (required)' if default is None else f' = {default}'}\n      {doc}")
    if not plugin.mark.config.model_fields:
        print("  none")
    print("\nhanded to it:")
    for handle in plugin.mark.handles:
        print(f"  {handle}: {STAGES[stage].handles[handle]}")


@app.command()
def new(
    stage: Stage,
    name: Annotated[str, typer.Argument(help="Name of the plugin: lower case, a Python identifier.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where to write it.")] = Path(),
) -> None:
    """Write a plugin to start from, with a test of its own."""
    from strop.flows import plugin_check, templates

    plugin_check.known(stage)
    if not name.isidentifier() or name != name.lower():
        raise typer.BadParameter(f"{name!r}: lower-case letters, digits and _", param_hint="NAME")
    files = templates.plugin_files(stage, name)
    taken = [folder / file for file in files if (folder / file).exists()]
    if taken:
        raise PluginError(f"{taken[0]} exists already; choose another name or folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
        print(folder / file)
    use = f"./{name}.py:{name}"
    output.say(
        f"check it:  strop plugins check {stage} {use}\nuse it:    - {stage}: {{use: {use}}}   in the recipe beside it"
    )


@app.command()
def check(
    stage: Stage,
    name: Annotated[str, typer.Argument(help="Plugin name, or ./file.py:function.")],
    json: options.Json = False,
) -> int:
    """Check a plugin against its stage's contract. Exits with 1 when it breaks it."""
    from strop.core import registry
    from strop.flows import plugin_check

    plugin = registry.find(plugin_check.known(stage), name)
    found = plugin_check.complaints(plugin)
    if json:
        print(output.as_json({"stage": stage, "name": plugin.name, "origin": plugin.origin, "complaints": found}))
    else:
        for text in found:
            print(f"- {text}")
        print(f"{stage} {plugin.name}: " + (f"{len(found)} to put right" if found else "keeps the contract"))
    return 1 if found else 0
