"""What an objective asks to be put in the place of a completion's tokens before the policy reads them. Needs no torch.

The mark of the objective names a function of its settings and of the share of training done:

    @stage("objective", examples="sft", corrupts=lambda config, progress: Corruption(0.2, "mask"))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Corruption:
    """Of the tokens a loss covers, which are replaced as inputs, and by what. As targets they stay."""

    share: float
    """Probability of each, apart from all others."""
    by: Literal["mask", "own"]
    """A token that says nothing, or what the policy itself finds likeliest at that place."""
    token: str | None = None
    """With 'mask': the token; null = the tokenizer's mask token, else its padding."""
