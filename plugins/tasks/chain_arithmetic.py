"""Chain arithmetic: expressions of single-digit numbers that are easy one operation at a time and hard at a glance.

Twelve categories, family (`add`: + and -, `mul`: also *) by number of operators, each with its level: enough spread
for selectors and synthesizers to have something to choose from. Prompt `3+4*2-1=`; the completion is the bare answer
or a scratchpad ending in it (see `_scratchpad`). The held-out problems depend on the shape of the task alone, not on
the seed, so that every run is examined on the same ones.

Source: made for Strop's default recipe; the scratchpad form follows Nye et al. 2021, 2112.00114.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from strop.core.plugin import LATER, Config, Task, stage
from strop.core.seeds import derive
from strop.plugins.tasks._scratchpad import draw, evaluate, scratchpad
from strop.storage.errors import did_you_mean
from strop.storage.tables import Problem, Score

Operators = Annotated[int, Field(ge=1, le=12)]
_TRIES = 200
"""Draws without a new problem after which a category counts as used up."""


class ChainArithmetic(Config):
    """Which expressions, and how many."""

    families: tuple[Literal["add", "mul"], ...] = ("add", "mul")
    """`add` has + and -, `mul` at least one * as well."""
    min_operators: Operators = 2
    """Fewest operators."""
    max_operators: Operators = 7
    """Most operators; the number of operators is the problem's level."""
    train: PositiveInt = 6144
    """Training problems, spread evenly over the categories (fewer where a category has no more)."""
    heldout_per_category: PositiveInt = 50
    """Held-out problems of each category."""
    solutions: Annotated[bool, LATER] = False
    """Keep each training problem's scratchpad, every step right, in `aux` under `solution`, for `demonstrated`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_operators > self.max_operators:
            raise ValueError(f"min_operators ({self.min_operators}) is above max_operators ({self.max_operators})")
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError("families must name 'add', 'mul' or both, each once")
        return self


@stage("task")
def chain_arithmetic(config: ChainArithmetic, *, seed: int) -> Task:
    """The task: problems of both splits, a generator of more, and the verdict on an answer."""
    heldout = heldout_problems(config)
    taken = {p.prompt for p in heldout}
    train: list[Problem] = []
    names = categories(config)
    for index, name in enumerate(names):
        count = config.train // len(names) + (index < config.train % len(names))
        train += _problems(name, count, derive(seed, "chain_arithmetic", name), taken, solutions=config.solutions)
    more = partial(_more, names, frozenset(taken), config.solutions)
    return Task(problems=lambda: [*train, *heldout], more=more, score=score_answer)


def categories(config: ChainArithmetic) -> list[str]:
    """Names of the categories, e.g. `add-3`, in order."""
    return [f"{f}-{k}" for f in config.families for k in range(config.min_operators, config.max_operators + 1)]


def heldout_problems(config: ChainArithmetic) -> list[Problem]:
    """The held-out split. A larger one begins with a smaller one, category by category."""
    found: list[Problem] = []
    for name in categories(config):
        found += _problems(name, config.heldout_per_category, derive(0, "heldout", name), set(), split="heldout")
    return found


def score_answer(problem: Problem, completion: str) -> Score:
    """Pass when what follows the last `=` is the reference."""
    answer = completion.rsplit("=", 1)[-1].strip()
    right = answer == problem.reference
    reason = None if right else f"expected {problem.reference}, got {answer!r}"
    return Score(
        subject_id=0, verdict="pass" if right else "fail", value=float(right), answer=answer or None, reason=reason
    )


def _problems(
    category: str, count: int, seed: int, taken: set[str], split: str = "train", *, solutions: bool = False
) -> list[Problem]:
    """Up to `count` problems whose prompts are not in `taken`; their prompts are added to it."""
    rng = random.Random(seed)
    family, operators = category.split("-")
    found: list[Problem] = []
    tries = 0
    while len(found) < count and tries < _TRIES:
        chain = draw(rng, family, int(operators))
        prompt = f"{chain}="
        tries += 1
        if prompt in taken:
            continue
        tries = 0
        taken.add(prompt)
        found.append(
            Problem(
                prompt=prompt,
                reference=str(evaluate(chain)),
                category=category,
                level=float(operators),
                split=split,
                aux=json.dumps({"solution": scratchpad(chain)}) if solutions else None,
            )
        )
    return found


def _more(
    names: list[str],
    known: Collection[str],
    solutions: bool,
    category: str | None,
    level: float | None,
    n: int,
    seed: int,
) -> list[Problem]:
    """Up to n problems this task does not hold yet; where no category is given, of any with that level.

    Raises ValueError for a category or level the task has not.
    """
    if category is not None and category not in names:
        raise ValueError(f"chain_arithmetic has no category {category!r}{did_you_mean(category, names)}")
    chosen = [category] if category is not None else [c for c in names if level is None or int(c[4:]) == level]
    if not chosen:
        raise ValueError(f"chain_arithmetic has no category of level {level}; there is: {', '.join(names)}")
    taken = set(known)
    found: list[Problem] = []
    for index, name in enumerate(chosen):
        count = n // len(chosen) + (index < n % len(chosen))
        found += _problems(name, count, derive(seed, "more", name), taken, solutions=solutions)
    return found
