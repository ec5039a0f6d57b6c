"""`strop plugins`: list them, explain one, start one of your own, check that it keeps its contract."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from strop.core import registry
from strop.core.plugin import STAGES, Config
from strop.core.registry import Plugin
from strop.flows import options, output
from strop.storage.errors import PluginError, did_you_mean

app = typer.Typer(help="List, explain, start and check stage plugins.", no_args_is_help=True)

Stage = Annotated[str, typer.Argument(help="Kind of stage: verify, filter, generate, ...")]


@app.command("list")
def list_(
    stage: Annotated[Optional[str], typer.Argument(help="Only this kind of stage.")] = None,  # noqa: UP045
    json: options.Json = False,
) -> None:
    """List the plugins of every stage, built-in and installed. Imports none of them."""
    for name in [stage] if stage else []:
        known(name)
    found = [
        {"stage": kind, "name": name, "origin": origin, "doc": doc}
        for kind in ([stage] if stage else STAGES)
        for name, origin, doc in _listed(kind)
    ]
    if json:
        print(output.as_json(found))
        return
    output.table(["stage", "plugin", "origin", "what it does"], [[output.cell(v) for v in row.values()] for row in found])


@app.command()
def show(stage: Stage, name: Annotated[str, typer.Argument(help="Plugin name, or ./file.py:function.")]) -> None:
    """Explain a plugin: where it comes from, its settings with their defaults, and what it is handed."""
    known(stage)
    plugin = registry.find(stage, name)
    module = sys.modules[plugin.function.__module__]
    print(f"{stage}: {plugin.name} (version {plugin.mark.version}, {plugin.origin})\n")
    print(inspect.cleandoc(module.__doc__ or "no docstring"))
    print("\nsettings:")
    for key, default, doc in settings(plugin.mark.config):
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
    from strop.flows import templates

    known(stage)
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
    output.say(f"check it:  strop plugins check {stage} {use}\nuse it:    - {stage}: {{use: {use}}}   in the recipe beside it")


@app.command()
def check(
    stage: Stage,
    name: Annotated[str, typer.Argument(help="Plugin name, or ./file.py:function.")],
    json: options.Json = False,
) -> int:
    """Check a plugin against its stage's contract. Exits with 1 when it breaks it."""
    known(stage)
    plugin = registry.find(stage, name)
    found = complaints(plugin)
    if json:
        print(output.as_json({"stage": stage, "name": plugin.name, "origin": plugin.origin, "complaints": found}))
    else:
        for text in found:
            print(f"- {text}")
        print(f"{stage} {plugin.name}: " + (f"{len(found)} to put right" if found else "keeps the contract"))
    return 1 if found else 0


def known(stage: str) -> None:
    """Raises PluginError for a stage there is not."""
    if stage not in STAGES:
        raise PluginError(f"no such stage {stage!r}{did_you_mean(stage, STAGES)}")


def complaints(plugin: Plugin) -> list[str]:
    """What breaks the contract, beyond what finding the plugin has already checked; empty = nothing."""
    found = []
    module = sys.modules[plugin.function.__module__]
    config = plugin.mark.config
    if not (module.__doc__ or "").strip():
        found.append("the module has no docstring: say the idea in one sentence, then `Source: ...`")
    if plugin.function.__name__ != plugin.name:
        found.append(f"the function is called {plugin.function.__name__!r}; file, function and plugin share one name")
    for key, field in config.model_fields.items():
        if not field.description:
            found.append(f"setting {key!r} has no docstring under it")
    try:
        made = config.model_validate({})
        if config.model_validate(json_module.loads(made.model_dump_json())) != made:
            found.append("the settings change when they are written as JSON and read back")
    except ValueError as error:
        required = [key for key, field in config.model_fields.items() if field.is_required()]
        if not required:
            found.append(f"the default settings are not valid: {error}")
    if heavy := _heavy(module):
        found.append(f"imports {', '.join(heavy)} at the top level: import it inside the function, so that listing stays fast")
    if plugin.stage not in {"objective", "base", "task", "engine"} and "return" not in plugin.function.__annotations__:
        returns = " or ".join(f"list[{row.__name__}]" for row in STAGES[plugin.stage].returns) or "see the stage's doc"
        found.append(f"the function's return is not annotated ({returns})")
    return found


def settings(config: type[Config]) -> list[tuple[str, str | None, str]]:
    """Name, default (None = required) and meaning of every setting."""
    return [
        (key, None if field.is_required() else repr(field.get_default(call_default_factory=True)), field.description or "")
        for key, field in config.model_fields.items()
    ]


HEAVY = frozenset({"torch", "transformers", "datasets", "prefect", "vllm", "peft", "trl", "accelerate"})


def _heavy(module: Any) -> list[str]:
    """Heavy modules imported at the top level, by the source rather than by sys.modules, which others fill too."""
    try:
        body = ast.parse(inspect.getsource(module)).body
    except (OSError, SyntaxError):
        return []
    roots = set()
    for node in body:
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add((node.module or "").split(".")[0])
    return sorted(roots & HEAVY)


def _listed(stage: str) -> list[tuple[str, str, str]]:
    """Name, origin and first docstring line of a stage's plugins, read from their source."""
    found = []
    for name in registry.builtin_names(stage):
        spec = importlib.util.find_spec(f"strop.plugins.{STAGES[stage].package}.{name}")
        found.append((name, "built-in", _first_line(spec.origin if spec else None)))
    for name, point in registry.entry_points(stage).items():
        found.append((name, point.dist.name if point.dist else point.value, ""))
    return found


def _first_line(path: str | None) -> str:
    try:
        tree = ast.parse(Path(path or "").read_text())
    except (OSError, SyntaxError, ValueError):
        return ""
    return (ast.get_docstring(tree) or "").split("\n")[0]
