"""What two rounds were made with: recipe, stages, plugins, settings, what controllers asked for, seeds and code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.flows.runs import Queryable
from strop.storage.views import literal

RUN = """
SELECT recipe, recipe_json, seed, strop_version, code_version, parent_run_id FROM runs WHERE run_id = {run} LIMIT 1"""
STAGES = """
SELECT stage, any_value(plugin), any_value(plugin_version), any_value(config_json) FROM stage_runs
WHERE run_id = {run} AND round = {round} GROUP BY stage ORDER BY min(started_at), stage"""
CONTROLS = """
SELECT s.stage, p.state_json FROM plugin_state p JOIN (
  SELECT DISTINCT run_id, round, stage FROM stage_runs WHERE kind = 'control') s USING (run_id, round, stage)
WHERE p.run_id = {run} AND p.round = {round} - 1 ORDER BY ALL"""
MISSING = "-"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that differs; `-` where a side has it not."""

    where: str
    """'run', 'recipe', the label of a stage, or the label of the controller that asked for it."""
    name: str
    left: str
    right: str


def settings(console: Queryable, left: tuple[str, int], right: tuple[str, int]) -> list[Setting]:
    """Everything that differs between two rounds, each given as run and round."""
    found = []
    if left[0] != right[0]:
        found += _differing("run", _run(console, left[0]), _run(console, right[0]))
        found += _differing("recipe", _recipe(console, left[0]), _recipe(console, right[0]))
    stages = [_stages(console, *side) for side in (left, right)]
    for label in dict.fromkeys((*stages[0], *stages[1])):
        found += _differing(label, stages[0].get(label, {}), stages[1].get(label, {}))
    asked = [_asked(console, *side) for side in (left, right)]
    for label in dict.fromkeys((*asked[0], *asked[1])):
        found += _differing(f"{label} (asked for)", asked[0].get(label, {}), asked[1].get(label, {}))
    return found


def _run(console: Queryable, run: str) -> dict[str, Any]:
    names = ("recipe", "seed", "Strop", "code", "re-uses")
    for recipe, _, *others in console.query(RUN.format(run=literal(run))).rows:
        return dict(zip(names, (recipe, *others), strict=True))
    return {}


def _recipe(console: Queryable, run: str) -> dict[str, Any]:
    """The recipe's settings by dotted name; the stages' own come from what ran."""
    for row in console.query(RUN.format(run=literal(run))).rows:
        recipe = json.loads(row[1])
        order = " ".join(label for step in recipe.pop("round", ()) for label in step)
        return {**_flat({k: v for k, v in recipe.items() if k not in ("seed", "name")}), "round": order}
    return {}


def _stages(console: Queryable, run: str, round: int) -> dict[str, dict[str, Any]]:
    found = {}
    for label, plugin, version, config in console.query(STAGES.format(run=literal(run), round=round)).rows:
        if plugin:  # the rows of a run itself have none
            found[label] = {"plugin": plugin, "version": version} | {
                key: value for key, value in _flat(json.loads(config)).items() if key not in ("as", "use")
            }
    return found


def _asked(console: Queryable, run: str, round: int) -> dict[str, dict[str, Any]]:
    """Controller -> what it asked for in the round before, which is what this round ran with."""
    found = {}
    for label, state in console.query(CONTROLS.format(run=literal(run), round=round)).rows:
        pairs = (text.partition("=") for text in json.loads(state).get("overrides") or ())
        found[label] = {key: json.loads(value) for key, _, value in pairs}
    return found


def _differing(where: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Setting]:
    both = {**left, **right}
    if "plugin" in both and not (left and right):
        what = f"{both['plugin']} {both['version']}"
        return [Setting(where, "", what if left else MISSING, what if right else MISSING)]
    return [
        Setting(where, key, *(_text(side[key]) if key in side else MISSING for side in (left, right)))
        for key in both
        if left.get(key, MISSING) != right.get(key, MISSING)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            found |= _flat(inner, f"{prefix}{key}.")
        else:
            found[prefix + key] = inner
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
