"""The shapes an export can give its rows: what other programs call their data set types.

Source: TRL 1.16, "Dataset formats and types" (standard and conversational; preference, prompt-completion, unpaired
preference, prompt-only); chat messages as in OpenAI's fine-tuning files; verl's `RLHFDataset` columns.
Prompts of the standard type are the text the loss uses, chat template included; conversational ones are the problem's
messages before any template, since the consumer applies its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from strop.storage.errors import LakeError, did_you_mean
from strop.storage.exchange.sources import SOURCES, Source, table_columns
from strop.storage.parquet import schema as table_schema
from strop.storage.tables import BY_NAME

Record = dict[str, Any]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TEXT = {"messages", "context", "problem"}
_OF_EXAMPLE = ("prompt", "sampled_prompt", *sorted(_TEXT))
_OF_ROLLOUT = ("prompt", "train_prompt", "completion", "turn_offsets", "turn_roles", *sorted(_TEXT))


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of an export, and how a row becomes one of its records."""

    schema: pa.Schema
    reads: tuple[str, ...]
    """Columns of the source it needs."""
    record: Callable[[Mapping[str, Any]], Record] | None = None
    """None: the columns themselves, unchanged."""
    fixed: str = "true"
    """Condition that the rows of this shape meet, besides the source's."""


def shape(format: str, source: Source) -> Shape:
    """The shape of a source's rows in a format. Raises LakeError where the format has none for them."""
    if format == "rows":
        names = table_columns(source)
        return Shape(table_schema(BY_NAME[source.table]), tuple(names))
    if format not in FORMATS:
        raise LakeError(f"there is no format {format!r}{did_you_mean(format, [*FORMATS, 'rows'])}")
    found = FORMATS[format].get(source.name)
    if found is None:
        fitting = [name for name, shapes in FORMATS.items() if source.name in shapes]
        raise LakeError(
            f"the format {format!r} is for {', '.join(FORMATS[format])}, not for {source.name}; "
            f"{source.name} can be written as {', '.join([*fitting, 'rows'])}"
        )
    return found


def conversation(row: Mapping[str, Any], prompt: str) -> list[dict[str, str]]:
    """The messages that lead to a completion: the problem's own where the prompt is just the problem in a template.

    `prompt` is the text the loss uses; where it is not what was sampled from, it is the one message.
    """
    problem = row["problem"]
    if problem is None or prompt != row.get("sampled_prompt", prompt):
        return [{"role": "user", "content": prompt}]
    messages: list[dict[str, str]] = json.loads(row["messages"]) if row["messages"] else []
    if row["context"] is None:
        return messages or [{"role": "user", "content": problem}]
    if messages:
        return [{"role": "system", "content": row["context"]}, *messages]
    return [{"role": "user", "content": f"{row['context']}\n\n{problem}"}]


def turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The completion as messages: one of the assistant, or one a turn where turns were recorded."""
    text, offsets, roles = row["completion"], row.get("turn_offsets"), row.get("turn_roles")
    if not offsets or not roles:
        return _assistant(text)
    ends = [*offsets[1:], len(text)]
    return [{"role": role, "content": text[start:end]} for role, start, end in zip(roles, offsets, ends, strict=True)]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _loss_prompt(row: Mapping[str, Any]) -> str:
    prompt: str = row["prompt"] if row["train_prompt"] is None else row["train_prompt"]
    return prompt


def _of_rollout(row: Mapping[str, Any]) -> list[dict[str, str]]:
    return conversation({**row, "sampled_prompt": row["prompt"]}, _loss_prompt(row))


def _of_problem(row: Mapping[str, Any]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = json.loads(row["messages"]) if row["messages"] else []
    return messages or [{"role": "user", "content": row["prompt"]}]


def _schema(**fields: pa.DataType) -> pa.Schema:
    return pa.schema(list(fields.items()))


_SAMPLED = "finish_reason <> 'error'"
"""A rollout that failed has no completion to learn from."""
_PROMPT_COMPLETION = _schema(prompt=pa.string(), completion=pa.string())
_CHAT_PROMPT_COMPLETION = _schema(prompt=MESSAGES, completion=MESSAGES)
_CHAT = _schema(messages=MESSAGES)

TRL: dict[str, Shape] = {
    "pairs": Shape(
        _schema(prompt=pa.string(), chosen=pa.string(), rejected=pa.string()), ("prompt", "chosen", "rejected")
    ),
    "sft": Shape(_PROMPT_COMPLETION, ("prompt", "completion")),
    "rollouts": Shape(
        _PROMPT_COMPLETION,
        ("prompt", "train_prompt", "completion"),
        lambda row: {"prompt": _loss_prompt(row), "completion": row["completion"]},
        _SAMPLED,
    ),
    "unpaired": Shape(
        _schema(prompt=pa.string(), completion=pa.string(), label=pa.bool_()),
        ("prompt", "train_prompt", "completion", "verdict"),
        lambda row: {
            "prompt": _loss_prompt(row),
            "completion": row["completion"],
            "label": row["verdict"] == "pass",
        },
    ),
    "prompts": Shape(_schema(prompt=pa.string()), ("prompt",)),
}
TRL_CHAT: dict[str, Shape] = {
    "pairs": Shape(
        _schema(prompt=MESSAGES, chosen=MESSAGES, rejected=MESSAGES),
        (*_OF_EXAMPLE, "chosen", "rejected"),
        lambda row: {
            "prompt": conversation(row, row["prompt"]),
            "chosen": _assistant(row["chosen"]),
            "rejected": _assistant(row["rejected"]),
        },
    ),
    "sft": Shape(
        _CHAT_PROMPT_COMPLETION,
        (*_OF_EXAMPLE, "completion"),
        lambda row: {"prompt": conversation(row, row["prompt"]), "completion": _assistant(row["completion"])},
    ),
    "rollouts": Shape(
        _CHAT_PROMPT_COMPLETION,
        _OF_ROLLOUT,
        lambda row: {"prompt": _of_rollout(row), "completion": turns(row)},
        _SAMPLED,
    ),
    "unpaired": Shape(
        _schema(prompt=MESSAGES, completion=MESSAGES, label=pa.bool_()),
        (*_OF_ROLLOUT, "verdict"),
        lambda row: {"prompt": _of_rollout(row), "completion": turns(row), "label": row["verdict"] == "pass"},
    ),
    "prompts": Shape(_schema(prompt=MESSAGES), ("prompt", "messages"), lambda row: {"prompt": _of_problem(row)}),
}
CHAT: dict[str, Shape] = {
    "sft": Shape(
        _CHAT,
        (*_OF_EXAMPLE, "completion"),
        lambda row: {"messages": [*conversation(row, row["prompt"]), *_assistant(row["completion"])]},
    ),
    "rollouts": Shape(_CHAT, _OF_ROLLOUT, lambda row: {"messages": [*_of_rollout(row), *turns(row)]}, _SAMPLED),
}
VERL: dict[str, Shape] = {
    "prompts": Shape(
        _schema(
            data_source=pa.string(),
            prompt=MESSAGES,
            ability=pa.string(),
            reward_model=pa.struct([("style", pa.string()), ("ground_truth", pa.string())]),
            extra_info=pa.struct(
                [
                    ("split", pa.string()),
                    ("index", pa.int64()),
                    ("problem_id", pa.int64()),
                    ("problem_key", pa.string()),
                    ("question", pa.string()),
                    ("aux", pa.string()),
                ]
            ),
        ),
        ("problem_id", "problem_key", "task", "split", "category", "prompt", "messages", "reference", "aux"),
        lambda row: {
            "data_source": row["task"],
            "prompt": _of_problem(row),
            "ability": row["category"] or row["task"],
            "reward_model": {"style": "rule", "ground_truth": row["reference"] or ""},
            "extra_info": {
                "split": row["split"],
                "index": row["index"],
                "problem_id": row["problem_id"],
                "problem_key": row["problem_key"],
                "question": row["prompt"],
                "aux": row["aux"],
            },
        },
    )
}
FORMATS: dict[str, dict[str, Shape]] = {"trl": TRL, "trl-chat": TRL_CHAT, "chat": CHAT, "verl": VERL}
assert all(name in SOURCES for shapes in FORMATS.values() for name in shapes)
