"""`--set stage.key=value`: one setting of a recipe changed before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from strop.core.yaml_source import Source
from strop.storage.errors import RecipeError, did_you_mean


def overridden(source: Source, overrides: Sequence[str], top_level: Collection[str]) -> Source:
    """The source with the overrides applied; `top_level` are the keys of a recipe file. Raises RecipeError."""
    data = copy.deepcopy(source.data)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {text!r}: write stage.key=value, e.g. --set generate.n=16")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {text!r}: {raw!r} is not a YAML value") from error
        _set(data, key.strip(), value, text, top_level)
    return Source(source.name, data, source.lines)


def _set(data: dict[str, Any], key: str, value: Any, text: str, top_level: Collection[str]) -> None:
    head, _, rest = key.partition(".")
    if head in {"base", "engine"} and rest:
        data[head] = _as_mapping(data.get(head, "hf"))
        return _set_path(data[head], rest, value)
    if head in top_level and head not in {"round", "tasks"}:
        return _set_path(data, key, value)
    candidates = _entries(data, head)
    if not candidates:
        kinds = {kind for item in _listed(data, "round") if isinstance(item, dict) for kind in item}
        known = kinds | {*top_level, "task"} - {"round", "tasks"}
        raise RecipeError(f"--set {text!r}: the recipe has no {head!r}{did_you_mean(head, known)}")
    if not rest:
        raise RecipeError(f"--set {text!r}: name a key of {head!r}, e.g. {head}.key=value")
    name, _, tail = rest.partition(".")
    if name in candidates and tail:
        (holder, slot), rest = candidates[name], tail
    elif len(candidates) == 1:
        holder, slot = next(iter(candidates.values()))
    else:
        raise RecipeError(
            f"--set {text!r}: there are {len(candidates)} {head} entries; write one of "
            + ", ".join(f"{head}.{n}.key=value" for n in candidates)
        )
    holder[slot] = _as_mapping(holder[slot], "objective" if head in {"train", "train_reward"} else "use")
    return _set_path(holder[slot], rest, value)


def _entries(data: dict[str, Any], head: str) -> dict[str, tuple[Any, Any]]:
    """Name -> (list or mapping, index or key) of the tasks, or of the round's entries of that kind."""
    if head in {"task", "tasks"}:
        tasks = _listed(data, "tasks")
        return {_name_of(entry): (tasks, i) for i, entry in enumerate(tasks)}
    items = [item for item in _listed(data, "round") if isinstance(item, dict) and list(item) == [head]]
    return {_name_of(item[head]): (item, head) for item in items}


def _listed(data: dict[str, Any], key: str) -> list[Any]:
    """Nothing has been checked yet: anything may stand there."""
    found = data.get(key)
    return found if isinstance(found, list) else []


def _set_path(mapping: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        inner = mapping.get(parent)
        if not isinstance(inner, dict):
            inner = {} if inner is None else {"use": inner}
            mapping[parent] = inner
        mapping = inner
    mapping[last] = value


def _as_mapping(entry: Any, key: str = "use") -> dict[str, Any]:
    return dict(entry) if isinstance(entry, dict) else {key: entry}


def _name_of(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry or "")
    return str(entry.get("as") or entry.get("use") or _name_of(entry.get("objective")))
