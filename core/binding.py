"""A run is bound to its recipe: its row is written once, and another recipe under its id is refused."""

from __future__ import annotations

import datetime
import json
import subprocess
from importlib import metadata
from pathlib import Path

from strop.core.recipe import Recipe, canonical_json
from strop.core.session import Session
from strop.storage.errors import RecipeError
from strop.storage.ids import digest, shard_number
from strop.storage.tables import Run, StageRun


def bind(session: Session) -> None:
    """Write the run's row, or check that this is the recipe it was started with. Raises RecipeError."""
    recipe = session.recipe
    text = canonical_json(recipe.canonical())
    there = session.read(Run, "true")
    if there:
        if there[0].recipe_hash != recipe.identity():
            raise RecipeError(
                f"run {session.run_id!r} was started with another recipe: "
                f"{_differences(there[0].recipe_json, recipe)}. "
                "Put it back, or start a new run with --run-id"
            )
        return
    number = shard_number(session.run_id, 0, "run", 0)
    row = Run(
        run_id=session.run_id,
        stage_run_id=number,
        recipe=recipe.name,
        recipe_json=text,
        recipe_hash=recipe.identity(),
        seed=recipe.seed,
        strop_version=metadata.version("strop"),
        code_version=_git_commit(),
        created_at=datetime.datetime.now(datetime.UTC),
    )
    run = StageRun(
        run_id=session.run_id,
        stage_run_id=number,
        key=digest("run", session.run_id, recipe.identity()),
        stage="run",
        kind="run",
        shard=0,
        shards=1,
        plugin="",
        plugin_version="",
        config_json="{}",
        upstream=[],
        seed=recipe.seed,
        rows_json="{}",
    )
    session.commit(run, counts={"runs": 1}, seconds=0.0, rows={"runs": [row]})


def _differences(stored: str, recipe: Recipe) -> str:
    before, after = _flat(json.loads(stored)), _flat(recipe.canonical())
    changed = [
        f"{key} was {before.get(key)!r}, now {after.get(key)!r}"
        for key in sorted({*before, *after} - {"rounds"})
        if before.get(key) != after.get(key)
    ]
    return "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value and all(isinstance(v, dict) and len(v) == 1 for v in value):
        items = [(k, v) for item in value for k, v in item.items()]  # the stages of a round, by label
    else:
        return {prefix: value}
    found: dict[str, object] = {}
    for key, inner in items:
        found.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _git_commit() -> str | None:
    """Commit of the source Strop runs from, when that is a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
