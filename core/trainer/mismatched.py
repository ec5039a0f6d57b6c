"""How far the policy has moved from the reference on completions that do not belong to their prompt.

Kahneman-Tversky optimisation estimates its KL divergence so: each prompt is followed by the completion of another one.
The partners are fixed for a training, so the reference's side is computed once.

Source: Ethayarajh et al. 2024, 2402.01306, section 4.1 (z_0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.logps import Reader
from strop.core.trainer.loss import Reference, reference_logps


def mismatched_items(items: Sequence[Item], max_length: int) -> list[Item | None]:
    """Each prompt with the completion of the next item that has another prompt and fits; None where there is none."""
    prompts = [bytes(item.sequences[0].ids[: item.sequences[0].prompt_length]) for item in items]
    found: list[Item | None] = []
    for i, item in enumerate(items):
        own, made = item.sequences[0], None
        for k in range(1, len(items)):
            j = (i + k) % len(items)
            other = items[j].sequences[0]
            tail = other.ids[other.prompt_length :]
            if prompts[j] != prompts[i] and own.prompt_length + len(tail) <= max_length:
                ids = np.concatenate([own.ids[: own.prompt_length], tail])
                made = dataclasses.replace(
                    item, sequences=(Encoded(ids, own.prompt_length, other.mask),), reference_logps=(None,)
                )
                break
        found.append(made)
    return found


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The mismatched items, and the reference's log-probabilities of those there are."""

    items: list[Item | None]
    reference: dict[int, float]
    """Item -> sum over its completion."""
    micro_batch_tokens: int

    def moved(self, members: Sequence[int], read: Reader) -> list[float]:
        """Of each member, log pi - log pi_reference summed over its mismatched completion; NaN where it has none."""
        chosen = [i for i in members if i in self.reference]
        found = dict.fromkeys(members, float("nan"))
        made = [item for item in (self.items[i] for i in chosen) if item is not None]
        if made:
            now = reference_logps(made, read, micro_batch_tokens=self.micro_batch_tokens)
            for i, (logps,) in zip(chosen, now.logps, strict=True):
                found[i] = float(logps.sum()) - self.reference[i]
        return [found[i] for i in members]


def mismatched(items: list[Item | None], reference: Reference, micro_batch_tokens: int) -> Mismatched:
    """`reference` is that of the items that are not None, in their order."""
    present = [i for i, item in enumerate(items) if item is not None]
    sums = {i: float(logps.sum()) for i, (logps,) in zip(present, reference.logps, strict=True)}
    return Mismatched(items, sums, micro_batch_tokens)
