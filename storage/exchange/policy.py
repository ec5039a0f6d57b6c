"""A policy as a folder ready for the hub: its checkpoint, and a model card that says where it comes from.

Source: Hugging Face hub, "Model cards" (YAML front matter, `model-index` with evaluation results).
Everything on the card is read from the lake; what the lake does not know (the licence, intended use) is left for the
user to write.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from strop.storage.checkpoints import local_checkpoint, verify_checkpoint
from strop.storage.console import Console
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.exchange.model_card import model_card
from strop.storage.exchange.place import FILES, MANIFEST, check_free, fresh
from strop.storage.views import literal

POLICY = """SELECT * EXCLUDE (detail) FROM policies WHERE {condition} ORDER BY policy_id DESC LIMIT 1"""
CHAIN = """WITH RECURSIVE known AS MATERIALIZED (
  SELECT policy_id, name, round, status, kind, parent_policy_id, objective, examples, steps, loss, content_hash
  FROM policies),
chain AS (
  SELECT 0 AS depth, * FROM known WHERE policy_id = {id}
  UNION ALL SELECT depth + 1, k.* FROM chain c JOIN known k ON k.policy_id = c.parent_policy_id WHERE depth < 10000)
SELECT * FROM chain ORDER BY depth"""
RUN = "SELECT * FROM runs WHERE run_id = {run}"
TRAINED_ON = """SELECT e.kind, count(*) AS examples, count(DISTINCT e.problem_id) AS problems,
    count(DISTINCT e.rollout_id) AS rollouts, list_sort(list(DISTINCT e.round)) AS rounds
  FROM policy_examples x JOIN examples e USING (example_id) WHERE x.policy_id = {id} GROUP BY e.kind ORDER BY e.kind"""
PROBLEMS = """SELECT p.task, p.origin, count(DISTINCT p.problem_id) AS problems
  FROM policy_examples x JOIN examples e USING (example_id) JOIN problems p USING (problem_id)
  WHERE x.policy_id = {id} GROUP BY ALL ORDER BY ALL"""
VERIFIERS = """SELECT s.scorer, s.scorer_version, count(*) AS scores, count(*) FILTER (s.verdict = 'pass') AS passed
  FROM scores s WHERE s.subject_kind = 'rollout' AND s.subject_id IN (
    SELECT e.rollout_id FROM policy_examples x JOIN examples e USING (example_id) WHERE x.policy_id = {id}
    UNION SELECT e.rejected_rollout_id FROM policy_examples x JOIN examples e USING (example_id)
    WHERE x.policy_id = {id})
  GROUP BY ALL ORDER BY ALL"""
METRICS = """SELECT name, slice, value, n, ci_low, ci_high FROM metrics
  WHERE policy_id = {id} AND context_id IS NULL AND value IS NOT NULL ORDER BY slice, name"""


@dataclass(frozen=True, slots=True)
class ExportedPolicy:
    """What was written."""

    path: Path
    name: str
    files: list[str]


def find_policy(console: Console, name: str) -> dict[str, Any]:
    """The row of a policy by its name, id or the beginning of its hash. Raises LakeError."""
    condition = f"name = {literal(name)}"
    if name.isdecimal():
        condition += f" OR policy_id = {name}"
    if len(name) >= 8:
        condition += f" OR starts_with(content_hash, {literal(name)})"
    found = _rows(console, POLICY.format(condition=condition))
    if not found:
        known = [row[0] for row in console.query("SELECT DISTINCT name FROM policies").rows]
        raise LakeError(f"the lake {console.root} has no policy {name!r}{did_you_mean(name, known)}")
    return found[0]


def export_policy(console: Console, name: str, path: Path, *, force: bool = False) -> ExportedPolicy:
    """Copy a policy's checkpoint to a folder and write its model card.

    Raises LakeError when there is no such policy, when its files are not in reach or not what was stored, or when the
    place is taken.
    """
    if path.suffix in FILES:
        raise LakeError(f"a policy is a folder, got {path}")
    check_free(path, force=force)
    policy = find_policy(console, name)
    if not policy["path"]:
        raise LakeError(f"the policy {policy['name']} was imported by its name: the lake holds no checkpoint of it")
    checkpoint = local_checkpoint(console.root, policy["path"], policy["content_hash"])
    verify_checkpoint(checkpoint, policy["content_hash"])
    about = lineage(console, policy)
    with fresh(path, force=force) as work:
        shutil.copytree(checkpoint, work, dirs_exist_ok=True)
        (work / "README.md").write_text(model_card(about), encoding="utf-8")
        (work / "recipe.json").write_text(_pretty(json.loads(about["run"]["recipe_json"])), encoding="utf-8")
        facts = {key: value for key, value in about.items() if key != "run"}
        (work / MANIFEST).write_text(_pretty(facts), encoding="utf-8")
        files = sorted(str(file.relative_to(work)) for file in work.rglob("*") if file.is_file())
    return ExportedPolicy(path, policy["name"], files)


def lineage(console: Console, policy: dict[str, Any]) -> dict[str, Any]:
    """All that the card says, from the lake."""
    id = policy["policy_id"]
    run = _rows(console, RUN.format(run=literal(policy["run_id"])))
    return {
        "what": "policy",
        "policy": policy,
        "run": run[0] if run else {"run_id": policy["run_id"], "recipe_json": "{}"},
        "chain": _rows(console, CHAIN.format(id=id)),
        "trained_on": _rows(console, TRAINED_ON.format(id=id)),
        "problems": _rows(console, PROBLEMS.format(id=id)),
        "verifiers": _rows(console, VERIFIERS.format(id=id)),
        "metrics": _rows(console, METRICS.format(id=id)),
        "snapshot": console.snapshot,
        "strop_version": metadata.version("strop"),
    }


def _rows(console: Console, sql: str) -> list[dict[str, Any]]:
    result = console.query(sql)
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
