"""Chains of single-digit arithmetic and the scratchpads that reduce them one operation at a time.

`3+4*2-1=` is completed by `10`, or by `3+8-1=11-1=10`: at each step the leftmost `*`, else the leftmost operator, is
replaced by its value. Demonstrations may be wrong on purpose; `check_steps` finds out where.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

LARGEST = 99
"""No value on the way to the answer leaves 0..99."""
_OFFSETS = (-10, -2, -1, 1, 2, 10)
_CHAIN = re.compile(r"-?\d+(?:[-+*]\d+)*", re.ASCII)
_PART = re.compile(r"(^-?\d+|\d+)|([-+*])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Chain:
    """Numbers with one operator character between each two."""

    numbers: tuple[int, ...]
    operators: str

    def __str__(self) -> str:
        tail = [f"{operator}{number}" for operator, number in zip(self.operators, self.numbers[1:], strict=True)]
        return str(self.numbers[0]) + "".join(tail)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a scratchpad, as written."""

    text: str
    right: bool
    reason: str | None = None
    """What is wrong with it."""


def parse(text: str) -> Chain | None:
    """The chain a text spells; None when it spells none. Only the first number may be negative."""
    if not _CHAIN.fullmatch(text):
        return None
    parts = _PART.findall(text)
    return Chain(tuple(int(number) for number, _ in parts if number), "".join(operator for _, operator in parts))


def reduce_once(chain: Chain, offset: int = 0) -> tuple[Chain, int]:
    """The chain with its next operation replaced by its value plus `offset`, and that value."""
    at = max(chain.operators.find("*"), 0)
    left, right = chain.numbers[at : at + 2]
    match chain.operators[at]:
        case "*":
            value = left * right
        case "+":
            value = left + right
        case _:
            value = left - right
    value += offset
    numbers = (*chain.numbers[:at], value, *chain.numbers[at + 2 :])
    return Chain(numbers, chain.operators[:at] + chain.operators[at + 1 :]), value


def evaluate(chain: Chain) -> int | None:
    """Its value; None when a value on the way leaves 0..99."""
    while chain.operators:
        chain, value = reduce_once(chain)
        if not 0 <= value <= LARGEST:
            return None
    return chain.numbers[0]


def draw(rng: random.Random, family: str, operators: int) -> Chain:
    """A random chain: `add` has + and -, `mul` at least one * too, never two in a row, with factors 2..9."""
    while True:
        chosen = ""
        for _ in range(operators):
            times = family == "mul" and chosen[-1:] != "*" and rng.random() < 0.45
            chosen += "*" if times else "+-"[rng.random() < 0.5]
        if family == "mul" and "*" not in chosen:
            continue
        lowest = [2 if "*" in chosen[max(i - 1, 0) : i + 1] else 1 for i in range(operators + 1)]
        chain = Chain(tuple(low + int(rng.random() * (10 - low)) for low in lowest), chosen)
        if evaluate(chain) is not None:
            return chain


def scratchpad(chain: Chain, rng: random.Random | None = None, *, noise: float = 0.0) -> str:
    """The steps joined by `=`, the value last. Each step's value is wrong with probability `noise`, and carried on."""
    while True:
        steps, rest = [], chain
        while rest.operators:
            wrong = rng is not None and rng.random() < noise
            rest, value = reduce_once(rest, rng.choice(_OFFSETS) if wrong and rng is not None else 0)
            if not 0 <= value <= LARGEST:
                break
            steps.append(str(rest))
        else:
            return "=".join(steps)


def check_steps(prompt: str, completion: str) -> list[Step]:
    """Every step of a completion against the one before it: exactly the next operation, exactly its value.

    A bare answer is one step, right when it is the value of the prompt. A wrong step is judged on its own: the steps
    after it are right when they follow from what it says.
    """
    before = parse(prompt.strip().removesuffix("="))
    pieces = completion.strip().split("=")
    steps: list[Step] = []
    if before is not None and len(pieces) == 1 and "".join(pieces).isdigit():
        value = evaluate(before)
        right = value is not None and pieces[0] == str(value)
        return [Step(pieces[0], right, None if right else f"expected {value}")]
    for piece in pieces:
        if before is None:
            steps.append(Step(piece, False, "the step before it cannot be read"))
        elif not before.operators:
            steps.append(Step(piece, False, f"nothing is left to reduce in {before}"))
        else:
            expected = str(reduce_once(before)[0])
            steps.append(Step(piece, piece == expected, None if piece == expected else f"expected {expected}"))
        before = parse(piece)
    if before is not None and before.operators:
        steps.append(Step("", False, f"{before} is left unreduced"))
    return steps
