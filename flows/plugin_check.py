"""What `strop plugins` knows of them: which there are, what their settings mean, whether they keep their contract."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from strop.core import registry
from strop.core.plugin import STAGES, Config
from strop.core.registry import Plugin
from strop.storage.errors import PluginError, did_you_mean

HEAVY = frozenset({"torch", "transformers", "datasets", "prefect", "vllm", "peft", "trl", "accelerate"})


def known(stage: str) -> str:
    """The stage, if there is such a one. Raises PluginError."""
    if stage not in STAGES:
        raise PluginError(f"no such stage {stage!r}{did_you_mean(stage, STAGES)}")
    return stage


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
        if config.model_validate(json.loads(made.model_dump_json())) != made:
            found.append("the settings change when they are written as JSON and read back")
    except ValueError as error:
        required = [key for key, field in config.model_fields.items() if field.is_required()]
        if not required:
            found.append(f"the default settings are not valid: {error}")
    if heavy := _heavy(module):
        found.append(
            f"imports {', '.join(heavy)} at the top level: import it inside the function, so that listing stays fast"
        )
    for module_name in plugin.mark.imports:
        if importlib.util.find_spec(module_name.partition(".")[0]) is None:
            found.append(f"it imports {module_name}, which is not installed")
    if plugin.stage not in {"objective", "base", "task", "engine"} and "return" not in plugin.function.__annotations__:
        returns = " or ".join(f"list[{row.__name__}]" for row in STAGES[plugin.stage].returns) or "see the stage's doc"
        returns = "Score" if plugin.mark.each else returns
        found.append(f"the function's return is not annotated ({returns})")
    return found


def settings(config: type[Config]) -> list[tuple[str, str | None, str]]:
    """Name, default (None = required) and meaning of every setting."""
    return [
        (
            key,
            None if field.is_required() else repr(field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for key, field in config.model_fields.items()
    ]


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


def listed(stage: str) -> list[tuple[str, str, str]]:
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
