"""A run is bound to its recipe: its row is written once, and another recipe under its id is refused."""

from __future__ import annotations

import datetime
import json
import subprocess
from importlib import metadata
from pathlib import Path

from strop.core.recipe import canonical_json
from strop.core.reuse import Reuse
from strop.core.session import Session
from strop.storage.errors import RecipeError
from strop.storage.ids import digest, shard_number
from strop.storage.tables import Run, StageRun


def bind(session: Session, reuse: Reuse | None = None) -> Reuse | None:
    """Write the run's row, or check that this is the recipe it was started with.

    Returns what the run re-uses, which is for good. Raises RecipeError when recipe or sources are not the run's.
    """
    recipe = session.recipe
    text = canonical_json(recipe.canonical())
    there = session.read(Run, "true")
    if there:
        if there[0].recipe_hash != recipe.identity():
            stored = recipe.as_today(json.loads(there[0].recipe_json))
            if changed := differences(stored, json.loads(text)):
                raise RecipeError(
                    f"run {session.run_id!r} was started with another recipe: {changed}. "
                    "Put it back, or start a new run with --run-id"
                )
        bound = Reuse.of(there[0])
        if reuse is not None and reuse != bound:
            raise RecipeError(
                f"run {session.run_id!r} {f're-uses {bound}' if bound else 'is no rerun'}, and not {reuse}: "
                "give the new run another --run-id"
            )
        return bound
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
        parent_run_id=reuse.runs[0] if reuse else None,
        sources_json=reuse.to_json() if reuse else None,
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
    return reuse


def differences(stored: object, given: object) -> str:
    """The first three settings in which two recipes, or parts of them, differ; what may change aside."""
    before, after = _flat(stored), _flat(given)
    changed = [
        f"{key} was {before.get(key)!r}, now {after.get(key)!r}"
        for key in sorted({*before, *after} - {"rounds"})
        if before.get(key) != after.get(key) and not key.startswith("operation.")
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
