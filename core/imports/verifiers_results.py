"""One line of `results.jsonl`, which verifiers wrote before v1: a rollout with `prompt`, `completion` and `reward`.

Source: verifiers (Prime Intellect), `legacy/utils/save_utils.py`. `metadata.json` beside it names the environment, the
model, the sampling arguments and the least reward that passes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from strop.core.imports.lines import messages, value
from strop.core.imports.rewards import THRESHOLD, scores_of
from strop.core.imports.sample import Options, Sample
from strop.core.imports.turns import problem_of, rollout_of

_OF_LEGACY = frozenset(
    {"example_id", "prompt", "completion", "answer", "info", "task", "reward", "error", "metrics", "is_truncated"}
)


def result(found: dict[str, Any], about: dict[str, Any], path: Path, options: Options) -> Sample:
    """The sample; `about` is what `metadata.json` holds. Raises Wrong."""
    prompt, completion = found.get("prompt"), found.get("completion")
    asked = messages(prompt, "prompt") if isinstance(prompt, list) else [{"role": "user", "content": prompt or ""}]
    task = options.task or str(about.get("env_id") or found.get("task") or path.parent.name)
    data = {"answer": found.get("answer"), "info": found.get("info")}
    problem = problem_of(asked, data, task, options)
    said = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion or ""}]
    turns = [(message, message["role"] == "assistant") for message in messages(said, "completion")]
    error = found.get("error")
    metrics = found.get("metrics") or {}
    rest = {key: item for key, item in found.items() if key not in _OF_LEGACY and key not in metrics}
    rollout = rollout_of(problem, turns, bool(error), bool(found.get("is_truncated")), [error], rest)
    usage, settings = found.get("token_usage") or {}, about.get("sampling_args") or {}
    threshold = about.get("pass_threshold")
    return Sample(
        problem_ref=(task, str(found["example_id"])),
        problem=problem,
        rollout=dataclasses.replace(
            rollout,
            n_tokens=int(value(usage.get("output_tokens"), "DOUBLE", "output_tokens") or 0),
            temperature=value(settings.get("temperature"), "DOUBLE", "temperature"),
            top_p=value(settings.get("top_p"), "DOUBLE", "top_p"),
            max_tokens=value(settings.get("max_tokens"), "INTEGER", "max_tokens"),
        ),
        scores=tuple(
            scores_of(
                {},
                metrics,
                bool(error),
                [error],
                options,
                value(found.get("reward"), "DOUBLE", "reward"),
                THRESHOLD if threshold is None else float(threshold),
            )
        ),
        policy=options.model or str(about.get("model") or "external"),
    )
