"""Turns rows of examples into token sequences with a loss mask, and refuses what cannot be trained on.

Token ids that come with an example are used exactly: what was sampled is what is trained. Text is tokenised apart
from its prompt, as the sampler met it, and ended with EOS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from strop.core.trainer.job import name_ids, sides
from strop.storage.errors import StageError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and one completion as tokens."""

    ids: IntArray
    """[P + T] prompt, then completion."""
    prompt_length: int
    mask: FloatArray
    """[T] 1.0 on completion tokens the loss covers."""
    read: IntArray | None = None
    """[P + T] what the policy reads in place of `ids`, where inputs are corrupted; targets are `ids` all the same."""

    @property
    def targets(self) -> int:
        """Tokens the loss covers."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class Item:
    """One example, ready to be batched."""

    example_id: int
    sequences: tuple[Encoded, ...]
    """The completion, or the chosen one and the rejected one."""
    weight: float
    reward: float
    """NaN where the rollout could not be scored, or where the kind has none."""
    margin: float
    group_id: int
    """-1 where the kind has none."""
    behaviour_logps: FloatArray | None
    reference_logps: tuple[FloatArray | None, ...]
    """Of each sequence's completion, where they are known already."""
    stratum: int = -1
    """Which part of its group it belongs to; -1 where the example has none."""
    scorer_logps: tuple[FloatArray | None, FloatArray | None] = (None, None)
    """Of the completion under an implicit reward model and under its reference, where they are known already."""

    @property
    def length(self) -> int:
        """Length of its longest sequence."""
        return max(len(s.ids) for s in self.sequences)

    @property
    def targets(self) -> int:
        """Tokens the loss covers, a pair's both sides together."""
        return sum(s.targets for s in self.sequences)


def encode(table: pa.Table, tokenizer: PreTrainedTokenizerBase, *, max_length: int, longest: str) -> list[Item]:
    """The examples as items, in the order of the rows.

    `longest` says whose limit `max_length` is. Raises StageError, naming the rows: nothing for the loss to cover,
    longer than `max_length`, a token id the model does not have.
    """
    rows = table.to_pylist()
    prompts = encode_prompts([row["prompt"] for row in rows], tokenizer)
    named = [(row, name) for row in rows for name in sides(pair=row["kind"] == "pair")]
    texts = text_ids((row[name] or "" for row, name in named if row[f"{name}_token_ids"] is None), tokenizer)
    items = [_item(row, prompt, texts, tokenizer) for row, prompt in zip(rows, prompts, strict=True)]
    for bad, what in (
        ([i for i in items if any(s.targets == 0 for s in i.sequences)], "the loss covers no token of these examples"),
        (
            [i for i in items if i.length > max_length],
            f"these examples are longer than {longest}, {max_length} tokens (the longest has "
            f"{max(i.length for i in items)}): filter them out, or sample with a smaller max_tokens",
        ),
        (
            [i for i in items if any(((s.ids < 0) | (s.ids >= len(tokenizer))).any() for s in i.sequences)],
            "these examples have token ids outside the policy's vocabulary: they come from another tokenizer",
        ),
    ):
        if bad:
            raise StageError(f"{what} (example ids {name_ids([i.example_id for i in bad])})")
    return items


def behind(
    table: pa.Table,
    text: str,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    longest: str,
    setting: str,
) -> list[Item]:
    """The items, made of the rows, once more with the prompt that `text` makes of theirs, which is its `{prompt}`.

    Raises StageError as `encode`, naming the setting that has the text.
    """
    prompts = [text.replace("{prompt}", prompt) for prompt in table.column("prompt").to_pylist()]
    at = table.column_names.index("prompt")
    try:
        made = encode(table.set_column(at, "prompt", [prompts]), tokenizer, max_length=max_length, longest=longest)
    except StageError as error:
        raise StageError(f"behind the prompt of `{setting}`: {error}") from error
    by_id = {item.example_id: item for item in made}
    return [by_id[item.example_id] for item in items]


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of rendered prompts: BOS in front where the tokenizer sets one and the text does not bring its own."""
    distinct = list(dict.fromkeys(prompts))
    bos = tokenizer.bos_token
    own = {p for p in distinct if isinstance(bos, str) and bos and p.startswith(bos)}
    found: dict[str, list[int]] = {}
    for members, special in (([p for p in distinct if p not in own], True), ([p for p in distinct if p in own], False)):
        if members:
            encoded = tokenizer(members, add_special_tokens=special)["input_ids"]
            found.update(zip(members, encoded, strict=True))
    eos = tokenizer.eos_token_id
    if eos is not None and eos != tokenizer.bos_token_id:  # some tokenizers end every text with EOS
        for prompt, ids in found.items():
            if ids[-1:] == [eos] and not prompt.endswith(str(tokenizer.eos_token)):
                found[prompt] = ids[:-1]
    return [found[p] for p in prompts]


def text_ids(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids of completions, tokenised in one call, each ended with EOS.

    Raises StageError where the tokenizer has no EOS.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    eos = tokenizer.eos_token_id
    if eos is None:
        raise StageError("the policy's tokenizer has no eos_token: set one, or give completion_token_ids")
    encoded = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    return {text: [*ids, eos] for text, ids in zip(distinct, encoded, strict=True)}


def _item(
    row: dict[str, Any], prompt: list[int], texts: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase
) -> Item:
    names = sides(pair=row["kind"] == "pair")
    behaviour = row["behaviour_logps"]
    return Item(
        example_id=row["example_id"],
        sequences=tuple(
            encoded(
                prompt,
                texts[row[name] or ""] if row[f"{name}_token_ids"] is None else row[f"{name}_token_ids"],
                row["loss_spans"],
                tokenizer,
            )
            for name in names
        ),
        weight=1.0 if row["weight"] is None else row["weight"],
        reward=float("nan") if row["reward"] is None else row["reward"],
        margin=float("nan") if row["margin"] is None else row["margin"],
        group_id=row["group_id"] if row["kind"] == "group" else -1,
        behaviour_logps=_floats(behaviour),
        reference_logps=tuple(_floats(row[f"{name}_reference_logps"]) for name in names),
        stratum=-1 if row["stratum"] is None else row["stratum"],
        scorer_logps=(
            _floats(row["completion_scorer_logps"]),
            _floats(row["completion_scorer_reference_logps"]),
        ),
    )


def _floats(values: Sequence[float] | None) -> FloatArray | None:
    return None if values is None else np.asarray(values, dtype=np.float32)


def encoded(
    prompt: list[int], ids: Sequence[int], spans: list[int] | None, tokenizer: PreTrainedTokenizerBase
) -> Encoded:
    """A prompt and a completion, covered where its characters meet the spans, or whole."""
    if spans:
        ends = piece_ends(ids, tokenizer)
        covered = [_overlaps(a, b, spans) for a, b in zip([0, *ends], ends, strict=False)]
    else:
        covered = [True] * len(ids)
    mask = np.asarray(covered, dtype=np.float32)
    if not prompt and len(mask):  # nothing to predict the very first token from
        mask[0] = 0.0
    return Encoded(np.asarray([*prompt, *ids], dtype=np.int64), len(prompt), mask)


def piece_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Character offset in the decoded text at which each token ends; special tokens have no width."""
    return [
        len(tokenizer.decode(list(ids[: i + 1]), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for i in range(len(ids))
    ]


def _overlaps(begin: int, end: int, spans: Sequence[int]) -> bool:
    """Whether characters [begin, end) meet a span; a token without width belongs to the span that ends at it."""
    pairs = zip(spans[::2], spans[1::2], strict=True)
    return any((a < end and begin < b) if end > begin else a < begin <= b for a, b in pairs)
