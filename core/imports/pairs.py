"""Preference pairs as TRL and most hub data sets have them: `prompt`, `chosen`, `rejected`, text or messages.

Source: TRL 1.16, "Dataset formats and types": preference, explicit prompt (`prompt` beside the two) or implicit (each
of the two a whole conversation). Parquet or JSON lines. Each pair becomes an example without rollouts, since nobody
knows what sampled it; `score_chosen` and `score_rejected` give its margin. Conversations end in one assistant message;
what comes before it is the prompt, written as `role: text` paragraphs where it is more than one user message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from strop.core.imports.lines import Wrong, content, messages, no_files, records, value
from strop.core.imports.sample import Complain, Format, Options
from strop.storage.tables import Example


def find(folder: Path) -> list[Path]:
    """The Parquet files, else the .jsonl files, below a folder. Raises DataError when there are none."""
    for pattern in ("*.parquet", "*.jsonl"):
        if found := sorted(folder.rglob(pattern)):
            return found
    raise no_files(folder, "*.parquet or *.jsonl")


def read(files: Sequence[Path], options: Options, complain: Complain) -> Iterator[Example]:
    """The pairs, in the order of the files."""
    for path in files:
        for number, found in _rows(path, complain):
            try:
                yield _pair(found)
            except Wrong as error:
                complain(path, number, str(error))


def _rows(path: Path, complain: Complain) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix != ".parquet":
        yield from records(path, complain)
        return
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2048):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _pair(found: dict[str, Any]) -> Example:
    chosen, rejected = (_said(found.get(name), name) for name in ("chosen", "rejected"))
    if found.get("prompt") is not None:
        prompt = _text(found["prompt"], "prompt")
    elif isinstance(found["chosen"], list) and len(found["chosen"]) > 1:
        prompt = _text(found["chosen"][:-1], "chosen")
    else:
        raise Wrong("a pair needs `prompt`, or conversations that begin with it")
    scores = [value(found.get(f"score_{name}"), "DOUBLE", f"score_{name}") for name in ("chosen", "rejected")]
    return Example(
        kind="pair",
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=None if None in scores else scores[0] - scores[1],
    )


def _said(found: Any, name: str) -> str:
    if isinstance(found, str):
        return found
    last = messages(found, name)[-1:]
    if not last or last[0]["role"] != "assistant":
        raise Wrong(f"{name!r} must be text, or messages that end with the assistant's")
    return content(last[0])


def _text(found: Any, name: str) -> str:
    if isinstance(found, str):
        return found
    chat = messages(found, name)
    if len(chat) == 1 and chat[0]["role"] == "user":
        return content(chat[0])
    return "\n\n".join(f"{message['role']}: {content(message)}" for message in chat)


FORMAT = Format("pairs", "preference pairs in JSON lines or Parquet", find, read)
