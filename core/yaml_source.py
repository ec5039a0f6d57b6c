"""YAML with line numbers, so that every complaint about a recipe names its line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from strop.storage.errors import RecipeError

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Parsed YAML and where each value stands."""

    name: str
    """File name as shown in messages."""
    data: dict[str, Any]
    lines: dict[Location, int]

    def error(self, location: Location, message: str) -> RecipeError:
        """A RecipeError at the innermost known part of `location`."""
        at = location
        while at and at not in self.lines:
            at = at[:-1]
        line = self.lines.get(at)
        return RecipeError(f"{self.name}:{line}: {message}" if line else f"{self.name}: {message}")


def parse(text: str, name: str) -> Source:
    """Parse one YAML document whose top level is a mapping.

    Raises RecipeError for malformed YAML, a key written twice, or another top level.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{name}: a recipe is a mapping, starting with `name: ...`; this file holds none")
    lines: dict[Location, int] = {}
    data = _value(node, (), lines, name)
    return Source(name, data, lines)


def parse_file(path: Path) -> Source:
    """`parse` of a file. Raises RecipeError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path))


def _value(node: yaml.Node, at: Location, lines: dict[Location, int], name: str) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in found:
                raise RecipeError(f"{name}:{line}: the key {key!r} stands here twice; keep one")
            lines[(*at, key)] = line
            found[key] = _value(value_node, (*at, key), lines, name)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*at, i), lines, name) for i, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        why = getattr(error, "problem", None) or error
        raise RecipeError(f"{name}:{node.start_mark.line + 1}: not a value a recipe can hold: {why}") from error
