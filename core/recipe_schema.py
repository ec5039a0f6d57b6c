"""The recipe's JSON schema, for editors: every built-in plugin's settings under the stage that takes it."""

from __future__ import annotations

from typing import Any

from strop.core import registry
from strop.core.plugin import STAGES, Config
from strop.core.recipe import ROUND_KINDS, TRAINS, RecipeFile
from strop.core.trainer.trl_config import NAME as TRL
from strop.core.trainer.trl_config import Trl


def json_schema() -> dict[str, Any]:
    """A draft 2020-12 schema of recipe files. Local and third-party plugins pass with any settings."""
    definitions: dict[str, Any] = {}
    entries = {
        stage: _entry(stage, definitions) for stage in STAGES if stage != "objective" and registry.builtin_names(stage)
    }
    for stage in ROUND_KINDS:
        entries.setdefault(stage, _open_entry(STAGES[stage].doc) if stage in STAGES else {})
    for kind, config in TRAINS.items():
        entries[kind] = _train(kind, config, definitions)
    top = RecipeFile.model_json_schema()
    properties = top["properties"]
    properties["base"] = entries["base"]
    properties["engine"] = entries["engine"]
    properties["tasks"]["items"] = entries["task"]
    properties["heldout"] = {"$ref": f"#/$defs/{_define(definitions, 'generate', 'sample')}"}
    properties["round"]["items"] = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {kind: entries[kind] for kind in ROUND_KINDS},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        "title": "Strop recipe",
        "$defs": {**definitions, **top.get("$defs", {})},
    }


def _entry(stage: str, definitions: dict[str, Any]) -> dict[str, Any]:
    names = registry.builtin_names(stage)
    plain = {"type": "string", "description": STAGES[stage].doc, "examples": names}
    known = [{"$ref": f"#/$defs/{_define(definitions, stage, name)}"} for name in names]
    other = {
        "type": "object",
        "required": ["use"],
        "properties": {"use": {"type": "string", "not": {"enum": names}}, "as": {"type": "string"}},
    }
    return {"anyOf": [plain, *known, other]}


def _open_entry(doc: str) -> dict[str, Any]:
    return {"type": ["string", "object"], "description": doc}


def _define(definitions: dict[str, Any], stage: str, name: str) -> str:
    plugin = registry.find(stage, name)
    key = f"{stage}.{name}"
    if key not in definitions:
        schema = _settings(plugin.mark.config, definitions)
        schema["properties"] = {
            "use": {"const": name, "description": plugin.doc},
            "as": {"type": "string", "description": "name for the rows it writes and for `--set`"},
            **schema.get("properties", {}),
        }
        schema["required"] = ["use", *schema.get("required", [])] if stage != "generate" else schema.get("required", [])
        definitions[key] = schema
    return key


def _train(kind: str, config: type[Config], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _settings(config, definitions)
    objective = _entry("objective", definitions)
    schema["properties"] = {**schema["properties"], "objective": objective, "as": {"type": "string"}}
    definitions[kind] = schema
    names = registry.builtin_names("objective")
    entries = [{"type": "string", "examples": names}, {"$ref": f"#/$defs/{kind}"}]
    return {"anyOf": [*entries, _trl(definitions)] if kind == "train" else entries}


def _trl(definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _settings(Trl, definitions)
    schema["properties"] = {"use": {"const": TRL}, **schema["properties"], "as": {"type": "string"}}
    schema["required"] = ["use", *schema["required"]]
    definitions["train.trl"] = schema
    return {"$ref": "#/$defs/train.trl"}


def _settings(config: type[Config], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = config.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    return schema
