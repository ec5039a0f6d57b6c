"""The README of an exported data set: what `datasets` needs to load it, and what a reader needs to trust it.

Source: Hugging Face hub, "Dataset cards" and "Manual configuration" (YAML front matter, `configs` with `data_files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

TYPES = {
    "trl": "TRL, standard",
    "trl-chat": "TRL, conversational",
    "chat": "chat messages",
    "verl": "verl prompts",
    "rows": "rows of the lake's table, ids included",
    "strop": "rollouts with their problem and scores, for `strop import strop`",
}


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML between two lines of dashes, keys in the order given."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def dataset_card(about: Mapping[str, Any], *, verl: bool) -> str:
    """The README of a folder, from the manifest of its export."""
    splits = sorted(about["rows"], key=["train", "heldout"].index)
    pattern = {"train": "train.parquet", "heldout": "test.parquet"}
    files = [{"split": s, "path": pattern[s] if verl else f"data/{s}-*.parquet"} for s in splits]
    head = front_matter(
        {
            "license": "unknown",
            "tags": ["strop", about["format"]],
            "configs": [{"config_name": "default", "data_files": files}],
        }
    )
    lines = [
        f"# {about['what']} ({TYPES[about['format']]})",
        "",
        f"Exported by Strop {about['strop_version']} from snapshot "
        f"{about['snapshot']} of a lake. **Licence: not stated; set `license` above before you publish this.**",
        "",
        "| split | rows |",
        "|---|---|",
        *(f"| {split} | {about['rows'][split]} |" for split in splits),
        "",
        f"Columns: {', '.join(f'`{name}`' for name in about['columns'])}.",
        "",
        "## Where it comes from",
        "",
        "| run | recipe | recipe hash | seed | rows | code |",
        "|---|---|---|---|---|---|",
        *(
            f"| {run['run_id']} | {run['recipe']} | {run['recipe_hash']} | {run['seed']} | {run['rows']} | "
            f"Strop {run['strop_version']}{', ' + run['code_version'][:12] if run['code_version'] else ''} |"
            for run in about["runs"]
        ),
        "",
        "Selected: "
        + ("; ".join(f"{key} = `{value}`" for key, value in about["selection"].items()) or "everything")
        + ".",
        "",
        "```sql",
        about["query"],
        "```",
        "",
    ]
    if verl:
        lines += [
            "`reward.py` is verl's `custom_reward_function.path` (name `compute_score`, or `compute_scores` with the "
            "`batch` reward manager); it needs Strop installed.",
            "",
        ]
    return head + "\n" + "\n".join(lines)
