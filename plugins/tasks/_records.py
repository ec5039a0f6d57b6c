"""Records of a file or data set as problems: which field is what, and which problems are held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from strop.core.plugin import Config
from strop.storage.errors import DataError, did_you_mean
from strop.storage.ids import digest
from strop.storage.tables import Problem


class Fields(Config):
    """Names of the fields; those a record has beyond them are kept in `aux`."""

    prompt: str = "prompt"
    """Field with the text of the problem; may be missing where there are messages."""
    reference: str = "reference"
    """Field with the known answer: text or a number."""
    messages: str = "messages"
    """Field with chat messages, a list of {role, content}; used where present."""
    category: str = "category"
    """Field with the problem's group; used where present."""
    level: str = "level"
    """Field with the problem's difficulty, a number; used where present."""
    references: Literal["required", "optional"] = "required"
    """Whether every problem must have a reference."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts held out, chosen by their content; unused where held-out problems come separately."""


def problem(record: Mapping[str, Any], where: str, fields: Fields) -> Problem:
    """The record as a problem. Raises DataError, which begins with `where`, for one that does not fit."""
    rest = dict(record)
    messages = _messages(rest.pop(fields.messages, None), where)
    prompt = rest.pop(fields.prompt, None)
    if prompt is None and messages:
        prompt = messages[-1]["content"]
    elif prompt is None:
        raise DataError(f"{where}: {_lacks(fields.prompt, record)} (another field: `prompt: its_name` in the recipe)")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: {fields.prompt!r} must be text that is not empty, got {prompt!r}")
    reference = rest.pop(fields.reference, None)
    if reference is None and fields.references == "required":
        raise DataError(
            f"{where}: {_lacks(fields.reference, record)} (another field: `reference: its_name` in the recipe; "
            "problems without a known answer: `references: optional`)"
        )
    category, level = rest.pop(fields.category, None), rest.pop(fields.level, None)
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float)):
        raise DataError(f"{where}: {fields.level!r} must be a number, got {level!r}")
    return Problem(
        prompt=prompt,
        messages=json.dumps(messages, ensure_ascii=False) if messages else None,
        reference=_text(reference),
        category=_text(category),
        level=None if level is None else float(level),
        aux=json.dumps(rest, sort_keys=True, ensure_ascii=False, default=str) if rest else None,
    )


def held_out_by_share(problems: Sequence[Problem], share: float, where: str) -> list[Problem]:
    """The problems with their split; a prompt is in one of them only, whichever the order of the records.

    Raises DataError when there are not two different prompts.
    """
    prompts = sorted({digest("heldout", p.prompt, p.messages) for p in problems})
    if len(prompts) < 2:
        raise DataError(f"{where}: one problem to train on and one to hold out are needed, there is {len(prompts)}")
    chosen = set(prompts[: min(len(prompts) - 1, max(1, round(share * len(prompts))))])
    return [
        replace(p, split="heldout" if digest("heldout", p.prompt, p.messages) in chosen else "train") for p in problems
    ]


def held_out_apart(train: Sequence[Problem], heldout: Sequence[Problem], where: str) -> list[Problem]:
    """Both splits, without the training problems whose prompt is held out. Raises DataError when that is all."""
    taken = {(p.prompt, p.messages) for p in heldout}
    left = [replace(p, split="train") for p in train if (p.prompt, p.messages) not in taken]
    if not left:
        raise DataError(f"{where}: every training prompt is also held out, nothing is left to train on")
    return [*left, *(replace(p, split="heldout") for p in heldout)]


def _lacks(name: str, record: Mapping[str, Any]) -> str:
    return f"{name!r} is null" if name in record else f"no field {name!r}{did_you_mean(name, record)}"


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if value is None:
        return []
    fits = isinstance(value, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    if not fits or not value:
        raise DataError(f"{where}: messages must be a list of {{role, content}}, got {value!r}")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
