"""A run's recipe as its row in the lake keeps it, made into a recipe again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from strop.core.overrides import overridden
from strop.core.recipe import TRAINS, Recipe, RecipeFile, build
from strop.core.yaml_source import Source
from strop.storage.errors import PluginError, RecipeError
from strop.storage.tables import Run


def stored_recipe(run: Run, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe the run was started with, `--set` and seed included, with further overrides.

    Raises RecipeError when a plugin of it is no longer found: local plugin files are looked for in the working
    directory, as a lake does not know where they were.
    """
    canonical = json.loads(run.recipe_json)
    if not canonical.get("round"):
        raise RecipeError(f"run {run.run_id!r} has no recipe: it was imported")
    source = Source(f"the recipe of run {run.run_id}", _as_file(canonical), {})
    try:
        return build(overridden(source, overrides, RecipeFile.model_fields), None)
    except PluginError as error:
        raise RecipeError(f"{error}\nGo to the recipe's folder, or name its file with --recipe") from error


def _as_file(canonical: dict[str, Any]) -> dict[str, Any]:
    """What a recipe file would say; the stages that examine a policy are written there as `heldout`."""
    stages = [(label, settings) for item in canonical["round"] for label, settings in item.items()]
    heldout: dict[str, Any] = next((settings for label, settings in stages if label == "heldout"), {})
    top = {key: canonical[key] for key in ("name", "seed", "rounds", "shard_rollouts", "base", "engine")}
    top["engine"] = {**top["engine"], **canonical.get("operation", {})}
    return {
        **top,
        "tasks": list(canonical["tasks"].values()),
        "heldout": heldout,
        "round": [
            {kind_of(label): _entry(kind_of(label), settings)}
            for label, settings in stages
            if kind_of(label) != "heldout"
        ],
    }


def kind_of(label: str) -> str:
    """The kind of a stage from its label, `verify.answer`."""
    return label.partition(".")[0]


def _entry(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A stage that trains is named by its objective, every other, and what TRL trains, by `use`."""
    named = kind in TRAINS and "objective" in settings
    return {k: v for k, v in settings.items() if k != "use"} if named else settings
