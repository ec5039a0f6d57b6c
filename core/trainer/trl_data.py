"""Examples as TRL's trainers read them: columns of token ids, exactly those that were sampled; TRL tokenises nothing.

GRPO: the stored completions, log-probabilities and rewards take the place of sampling. TRL wants groups of one size and
whole batches of them; where stored groups are smaller, or too few, blanks fill up: copies of a completion without
reward and with a mask of zeros.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strop.core.seeds import derive
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.job import name_ids
from strop.core.trainer.trl_config import Trl
from strop.storage.errors import StageError

IGNORED = -100
"""TRL's label of a token that the loss does not cover."""


@dataclass(frozen=True, slots=True)
class Member:
    """A completion of a group."""

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    logps: list[float]
    """Under the distribution they were sampled from."""
    reward: float | None


def check_items(items: Sequence[Item], config: Trl) -> None:
    """Raises StageError, naming the rows, for what TRL's trainers have no place for: it would be lost in silence."""
    weighted = [item.example_id for item in items if item.weight != 1]
    if weighted:
        raise StageError(
            f"these examples have weights, and TRL's trainers weigh all alike (example ids {name_ids(weighted)}): use "
            "one of Strop's objectives, or a builder that gives none"
        )
    masked = [item.example_id for item in items if not all(s.mask.all() for s in item.sequences)]
    if masked and config.trainer in ("dpo", "kto"):
        raise StageError(
            f"the loss covers only a part of these examples, which TRL's {config.trainer.upper()}Trainer cannot do "
            f"(example ids {name_ids(masked)}): use Strop's `{config.trainer}`"
        )


def sft_columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    """For SFTTrainer."""
    sequences = [item.sequences[0] for item in items]
    return {"input_ids": [s.ids.tolist() for s in sequences], "labels": [_labels(s) for s in sequences]}


def _labels(sequence: Encoded) -> list[int]:
    completion = np.where(sequence.mask > 0, sequence.ids[sequence.prompt_length :], IGNORED)
    return [IGNORED] * sequence.prompt_length + [int(label) for label in completion]


def dpo_columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    """For DPOTrainer."""
    return {
        "prompt_ids": [_prompt(item.sequences[0]) for item in items],
        "chosen_ids": [_completion(item.sequences[0]) for item in items],
        "rejected_ids": [_completion(item.sequences[1]) for item in items],
    }


def kto_columns(items: Sequence[Item], config: Trl, batch: int, seed: int) -> dict[str, list[Any]]:
    """For KTOTrainer, in the order it trains in: each batch lends a completion's prompt the one before it, for the KL.

    Raises StageError where no example has a reward.
    """
    known = [item for item in items if not math.isnan(item.reward)]
    if not known:
        raise StageError("kto learns from rewards, and every example's is null: put a `verify` that scores them before")
    order = np.random.default_rng(derive(seed, "order")).permutation(len(known))
    chosen = [known[i] for i in order]
    completions = [_completion(item.sequences[0]) for item in chosen]
    parts = [completions[start : start + batch] for start in range(0, len(completions), batch)]
    return {
        "prompt_ids": [_prompt(item.sequences[0]) for item in chosen],
        "completion_ids": completions,
        "KL_completion_ids": [ids for part in parts for ids in (part[-1], *part[:-1])],
        "label": [item.reward > config.threshold for item in chosen],
    }


def group_size(items: Sequence[Item]) -> int:
    """Completions of the largest group; TRL takes no fewer than two."""
    return max(2, *Counter(item.group_id for item in items).values())


def groups_of(items: Sequence[Item], size: int, at_once: int) -> list[list[Member]]:
    """Groups of `size`, as many as fill batches of `at_once` groups."""
    found: dict[int, list[Member]] = {}
    for item in items:
        found.setdefault(item.group_id, []).append(_member(item))
    groups = [[*members, *[_blank(members[0])] * (size - len(members))] for members in found.values()]
    blank = _blank(min((group[0] for group in groups), key=lambda m: len(m.completion_ids)))
    return [*groups, *[[blank] * size] * (-len(groups) % at_once)]


def shuffled(n: int, passes: int, seed: int) -> list[int]:
    """Numbers below n, each pass in an order of its own."""
    return [int(i) for p in range(passes) for i in np.random.default_rng(derive(seed, "order", p)).permutation(n)]


def _member(item: Item) -> Member:
    (sequence,) = item.sequences
    assert item.behaviour_logps is not None
    return Member(
        prompt_ids=_prompt(sequence),
        completion_ids=_completion(sequence),
        mask=sequence.mask.astype(int).tolist(),
        logps=item.behaviour_logps.tolist(),
        reward=None if math.isnan(item.reward) else item.reward,
    )


def _blank(member: Member) -> Member:
    return Member(member.prompt_ids, member.completion_ids, [0] * len(member.mask), member.logps, None)


def _prompt(sequence: Encoded) -> list[int]:
    ids: list[int] = sequence.ids[: sequence.prompt_length].tolist()
    return ids


def _completion(sequence: Encoded) -> list[int]:
    ids: list[int] = sequence.ids[sequence.prompt_length :].tolist()
    return ids
