"""Finds a plugin by name, lazily: built-in module, entry point, or a function in a local file.

Names: `sample` (built-in `strop.plugins.generate.sample`, or a third party's entry point in the group
`strop.generate`), or `./mine.py:near_match` (a file, relative to the recipe).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from strop.core.plugin import STAGES, Config, Mark
from strop.storage.errors import PluginError, did_you_mean


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that was found and whose contract holds."""

    stage: str
    name: str
    function: Callable[..., Any]
    origin: str
    """'built-in', 'entry point of <distribution>' or the file's path."""

    @property
    def mark(self) -> Mark:
        """What its `@stage` mark says."""
        mark: Mark = self.function.__strop__  # type: ignore[attr-defined]
        return mark

    @property
    def is_local(self) -> bool:
        """Whether it is a function in a file of the user's."""
        return self.origin.endswith(".py")

    @property
    def doc(self) -> str:
        """First line of the module's docstring."""
        return (sys.modules[self.function.__module__].__doc__ or "").strip().split("\n")[0]

    def configure(self, values: dict[str, Any]) -> Config:
        """The plugin's config from plain values. Raises pydantic's ValidationError."""
        return self.mark.config.model_validate(values)

    def call(self, config: Config, handles: dict[str, Any]) -> Any:
        """Run the function with the handles it asked for."""
        return self.function(config, **{name: handles[name] for name in self.mark.handles})


def builtin_names(stage: str) -> list[str]:
    """Names of the built-in plugins of a stage, without importing them."""
    try:
        package = importlib.import_module(f"strop.plugins.{STAGES[stage].package}")
    except ModuleNotFoundError:
        return []
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def entry_points(stage: str) -> dict[str, metadata.EntryPoint]:
    """Third-party plugins of a stage by name. Raises PluginError when two distributions claim one name."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in _installed(tuple(sys.path)).select(group=f"strop.{stage}"):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise PluginError(
                f"two distributions provide the {stage} plugin {point.name!r}: {_owner(other)} and {_owner(point)}; "
                "uninstall one, or name the file: ./path/to/module.py:function"
            )
        if point.name in builtin_names(stage):
            raise PluginError(
                f"{_owner(point)} provides a {stage} plugin {point.name!r}, which is built in; rename its entry point"
            )
        found[point.name] = point
    return found


@cache
def _installed(path: tuple[str, ...]) -> metadata.EntryPoints:
    """Every entry point on that `sys.path`, read once: each reading opens the metadata of all distributions."""
    found: Any = metadata.entry_points()  # before Python 3.12 of another type, which can `select` too
    installed: metadata.EntryPoints = found
    return installed


def names(stage: str) -> list[str]:
    """Every name `find` accepts for the stage, local files aside."""
    return sorted({*builtin_names(stage), *entry_points(stage)})


def find(stage: str, name: str, *, folder: Path | None = None) -> Plugin:
    """The plugin `name` of `stage`; local files are relative to `folder` (the recipe's).

    Raises PluginError: unknown name, failed import, no or the wrong mark, two owners of one name.
    """
    if stage not in STAGES:
        raise PluginError(f"no such stage {stage!r}{did_you_mean(stage, STAGES)}")
    if ":" in name or name.endswith(".py"):
        return _from_file(stage, name, folder or Path.cwd())
    points = entry_points(stage)
    if name in points:
        try:
            function = points[name].load()
        except Exception as error:
            raise PluginError(
                f"{stage} plugin {name!r} of {_owner(points[name])} failed to import ({points[name].value}): "
                f"{type(error).__name__}: {error}"
            ) from error
        return _checked(stage, name, function, f"entry point of {_owner(points[name])}")
    if name not in builtin_names(stage):
        raise PluginError(
            f"no {stage} plugin {name!r}{did_you_mean(name, names(stage))} "
            f"(one of your own: ./file.py:function, see `strop plugins new {stage}`)"
        )
    module = _import(f"strop.plugins.{STAGES[stage].package}.{name}", stage, name)
    if not hasattr(module, name):
        raise PluginError(f"{module.__name__} has no function {name!r}: file, function and plugin share one name")
    return _checked(stage, name, getattr(module, name), "built-in")


def _import(module: str, stage: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"{stage} plugin {name!r} failed to import: {type(error).__name__}: {error}") from error


def _from_file(stage: str, name: str, folder: Path) -> Plugin:
    path_text, _, function_name = name.partition(":")
    path = (folder / path_text).expanduser().resolve()
    if not function_name:
        raise PluginError(f"{name!r}: name the function too, e.g. {path_text}:{path.stem}")
    if not path.is_file():
        raise PluginError(f"{stage} plugin {name!r}: there is no file {path} (paths are relative to the recipe)")
    module_name = f"strop_local_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise PluginError(f"{stage} plugin {name!r}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except PluginError:
            del sys.modules[module_name]
            raise
        except Exception as error:
            del sys.modules[module_name]
            raise PluginError(f"{stage} plugin {name!r}: {path} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, function_name):
        marked = [n for n, v in vars(module).items() if hasattr(v, "__strop__")]
        raise PluginError(f"{path} has no {function_name!r}{did_you_mean(function_name, marked)}")
    return _checked(stage, function_name, getattr(module, function_name), str(path))


def _checked(stage: str, name: str, function: Any, origin: str) -> Plugin:
    mark = getattr(function, "__strop__", None)
    if mark is None:
        raise PluginError(f'{stage} plugin {name!r} ({origin}): its function needs the mark @stage("{stage}")')
    if mark.stage != stage:
        raise PluginError(f"{name!r} ({origin}) is a {mark.stage} plugin; it cannot stand under `{stage}`")
    return Plugin(stage, name, function, origin)


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def describe_errors(error: ValidationError, config: type[Config]) -> list[tuple[tuple[str | int, ...], str]]:
    """pydantic's complaints as (location, message), an unknown key with the nearest known one."""
    found = []
    for item in error.errors():
        location = tuple(item["loc"])
        if item["type"] == "extra_forbidden":
            message = f"unknown key {location[-1]!r}{did_you_mean(str(location[-1]), _fields_at(config, location))}"
        elif item["type"] == "missing":
            field = _fields_at(config, location).get(str(location[-1]))
            message = f"{location[-1]!r} is required: {(field and field.description) or 'give a value'}"
        else:
            field = config.model_fields.get(str(location[0])) if location else None
            secret = not location or (field is not None and not field.repr)
            message = ": ".join(filter(None, (".".join(map(str, location)), item["msg"])))
            message += "" if secret else f", got {item['input']!r}"
        found.append((location, message))
    return found


def _fields_at(config: type[BaseModel], location: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """The fields of the settings in which the last part of the location stands: settings may hold settings."""
    for part in location[:-1]:
        field = config.model_fields.get(str(part))
        config = next(_models(field.annotation), config) if field is not None else config
    return config.model_fields


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
