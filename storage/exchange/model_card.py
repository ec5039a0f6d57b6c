"""The README of an exported policy: front matter for the hub, and its lineage in words and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from strop.storage.exchange.card import front_matter

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(about: Mapping[str, Any]) -> str:
    """The card of a policy, from what `policy.lineage` found."""
    recipe = json.loads(about["run"]["recipe_json"])
    return front_matter(_head(about, recipe)) + "\n" + "\n".join(_body(about, recipe)) + "\n"


def _head(about: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    base, tasks = recipe.get("base", {}), recipe.get("tasks", {})
    datasets = sorted({str(t["dataset"]) for t in tasks.values() if HUB_ID.fullmatch(str(t.get("dataset", "")))})
    head: dict[str, Any] = {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["strop", "self-training", *filter(None, [about["policy"]["objective"]])],
    }
    if base.get("use") == "huggingface" and HUB_ID.fullmatch(base.get("model", "")):
        head["base_model"] = base["model"]
        if about["policy"]["kind"] != "base":
            head["base_model_relation"] = "finetune"
    if datasets:
        head["datasets"] = datasets
    if about["metrics"]:
        name = " + ".join(tasks) or "held-out problems"
        results = [_result(name, slice, about["metrics"]) for slice in _slices(about["metrics"])]
        head["model-index"] = [{"name": about["policy"]["name"], "results": results}]
    return head


def _result(tasks: str, slice: str, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [
        {
            "type": metric["name"],
            "name": metric["name"],
            "value": metric["value"],
            "args": {key: metric[key] for key in ("ci_low", "ci_high", "n")},
        }
        for metric in metrics
        if metric["slice"] == slice
    ]
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"type": "strop-heldout", "name": f"{tasks} ({slice})", "config": slice, "split": "heldout"},
        "metrics": found,
    }


def _slices(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({str(metric["slice"]) for metric in metrics})


def _body(about: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    policy, run = about["policy"], about["run"]
    base = recipe.get("base", {})
    lines = [
        f"# {policy['name']}",
        "",
        f"{_what(policy)} of the Strop run `{run['run_id']}` (status: {policy['status']}). **Licence: not stated; that "
        "of the base model and of the problems applies, set `license` above before you publish this.**",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this folder")',
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        "```",
        "",
        "## Lineage",
        "",
        f"- Base: `{base.get('use', 'unknown')}`" + (f", `{base['model']}`" if "model" in base else ""),
        f"- Recipe: `{run.get('recipe')}`, hash `{run.get('recipe_hash')}`, in full in `recipe.json`; seed "
        f"{run.get('seed')}",
        f"- Code: Strop {run.get('strop_version')}"
        + (f", commit `{run['code_version']}`" if run.get("code_version") else ""),
        f"- Checkpoint: content hash `{policy['content_hash']}`; lake snapshot {about['snapshot']}",
        "",
        *_table("Policies from here back to the base", about["chain"], CHAIN_COLUMNS),
        *_table("Trained on", about["trained_on"], ("kind", "examples", "problems", "rollouts", "rounds")),
        *_table("Problems of the training set, by source", about["problems"], ("task", "origin", "problems")),
        *_table("Verifiers that judged it", about["verifiers"], ("scorer", "scorer_version", "scores", "passed")),
        *_table("Evaluation, with 95 % intervals", about["metrics"], METRIC_COLUMNS),
        "## How to reproduce",
        "",
        f"The recipe named `{run.get('recipe')}` with seed {run.get('seed')} gives the same rollouts and weights on "
        "the same hardware and versions:",
        "",
        "```sh",
        f"pip install strop=={run.get('strop_version')}",
        f"strop run {run.get('recipe')} --seed {run.get('seed')} --rounds {policy['round'] or 1}",
        "```",
    ]
    return lines


def _what(policy: Mapping[str, Any]) -> str:
    if policy["kind"] == "base":
        return "Base policy, not trained further,"
    return f"Policy of round {policy['round']}, trained on verified rollouts of its parent,"


CHAIN_COLUMNS = ("name", "kind", "status", "objective", "examples", "steps", "loss", "content_hash")
METRIC_COLUMNS = ("slice", "name", "value", "ci_low", "ci_high", "n")


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    if not rows:
        return []
    lines = [f"### {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in columns) + " |" for row in rows]
    return [*lines, ""]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value).replace("|", "\\|")
