"""Messages as a problem and a completion: what was asked, and the turns that followed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from strop.core.imports.lines import compact, content, text
from strop.core.imports.sample import Options
from strop.storage.tables import Problem, Rollout

_PLAIN = frozenset({"role", "content"})
Turn = tuple[dict[str, Any], bool]
"""A message, and whether the policy wrote it."""


def problem_of(asked: list[dict[str, Any]], data: Mapping[str, Any], task: str, options: Options) -> Problem:
    """What was asked; `data` is what the task knows of it, its `answer` the reference."""
    chat = [{"role": str(m["role"]), "content": content(m)} for m in asked]
    alone = len(chat) == 1 and chat[0]["role"] == "user"
    prompt = data.get("prompt")
    rest = {k: v for k, v in data.items() if k not in ("prompt", "system_prompt", "answer") and v not in (None, [], {})}
    return Problem(
        task=task,
        split=options.split or "train",
        category=None,
        prompt=prompt if isinstance(prompt, str) and prompt else "\n\n".join(m["content"] for m in chat),
        messages=None if alone else json.dumps(chat, ensure_ascii=False),
        reference=text(data, "answer"),
        aux=compact(rest),
        origin="import",
    )


def rollout_of(
    problem: Problem,
    turns: list[Turn],
    failed: bool,
    truncated: bool,
    errors: Sequence[Any],
    rest: dict[str, Any],
) -> Rollout:
    """The turns as one text, with where each begins and which of it the policy wrote."""
    completion, offsets, spans = "", [], []
    for message, sampled in turns:
        start = len(completion)
        offsets.append(start)
        completion += content(message)
        if sampled:
            spans += [start, len(completion)]
    beyond = [{key: item for key, item in message.items() if key not in _PLAIN and item} for message, _ in turns]
    if any(beyond):
        rest = {**rest, "turns": beyond}
    several = len(turns) > 1
    return Rollout(
        problem_id=0,
        sample_index=-1,
        split=problem.split,
        prompt=problem.prompt,
        completion=completion,
        turn_offsets=offsets if several else None,
        turn_roles=[str(message["role"]) for message, _ in turns] if several else None,
        loss_spans=spans if several else None,
        finish_reason="error" if failed else "length" if truncated else "stop",
        error=said(errors) if failed else None,
        detail=compact({key: item for key, item in rest.items() if item is not None}),
    )


def said(errors: Sequence[Any]) -> str:
    """The last error in words."""
    last = errors[-1] if errors else None
    if isinstance(last, Mapping):
        kind, message = last.get("type") or last.get("error"), last.get("message") or last.get("error_chain_repr")
        return ": ".join(str(part) for part in (kind, message) if part) or "no reason given"
    return str(last) if last else "no reason given"
