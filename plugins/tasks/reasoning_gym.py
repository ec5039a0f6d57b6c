"""Any of Reasoning Gym's hundred procedural data sets, with its generator and its scorer.

Source: Stojanovski et al. 2025, 2505.24760. One entry of the recipe's `tasks` is one data set; list several for a mix.
Some scorers evaluate the answer as Python or SymPy: for data sets whose code does so, an answer that is more than
values and arithmetic fails unevaluated. The held-out problems depend on the data set alone, not on the run's seed.
Left out: `composite` and the curricula (list data sets with the settings you want).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Collection
from functools import cache, lru_cache
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator

from strop.core.plugin import Config, Task, stage
from strop.core.seeds import derive
from strop.plugins.tasks._harmless import harmless
from strop.plugins.verify._answers import extractor
from strop.storage.errors import DataError, did_you_mean
from strop.storage.tables import Problem, Score

_TRIES = 8
"""Draws of a whole batch after which a data set counts as used up; where a level is wanted, eight times as many."""
_WIDEST = 32
"""Settings that range further than this are no levels: hardly two problems would share one."""


class ReasoningGym(Config):
    """Which data set, and how much of it."""

    dataset: str
    """Its name, e.g. `chain_sum`, `countdown`, `spell_backward`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Its own settings, e.g. `{min_terms: 2, max_terms: 4}`."""
    train: PositiveInt = 1000
    """Training problems; fewer where the data set has no more."""
    heldout: PositiveInt = 200
    """Held-out problems; likewise."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Least score that passes; many data sets give a little for the form alone."""
    instruction: str = "Give your final answer between <answer> and </answer>."
    """What is added to every question; empty = nothing."""
    extract: str = "answer_tag"
    """Where the answer is, as in `verify: answer`; `whole` for policies that give the bare answer."""

    @field_validator("extract")
    @classmethod
    def _known(cls, how: str) -> str:
        extractor(how)
        return how


@stage("task")
def reasoning_gym(config: ReasoningGym, *, seed: int) -> Task:
    """The task. Raises DataError for an unknown data set, and for settings it refuses."""
    make = lru_cache(maxsize=16)(lambda seed, size: _dataset(config, seed, size))
    make(0, 1)

    @cache
    def problems() -> tuple[Problem, ...]:
        taken: set[str] = set()
        heldout = _draw(config, make, config.heldout, derive(0, "heldout", config.dataset), taken)
        train = _draw(config, make, config.train, derive(seed, "reasoning_gym", config.dataset), taken)
        if not train:
            raise DataError(f"{config.dataset} with {config.config} has no more than {len(heldout)} problems")
        return (*train, *(dataclasses.replace(p, split="heldout") for p in heldout))

    def more(category: str | None, level: float | None, n: int, seed: int) -> list[Problem]:
        if category not in (None, config.dataset):
            raise ValueError(f"this task has the one category {config.dataset!r}, not {category!r}")
        known = {p.prompt for p in problems()}
        return _draw(config, make, n, derive(seed, "more", config.dataset), known, level)

    return Task(
        problems=lambda: list(problems()),
        more=more,
        score=lambda problem, completion: _score(config, make, problem, completion),
    )


def _dataset(config: ReasoningGym, seed: int, size: int) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if config.dataset not in DATASETS:
        raise DataError(f"Reasoning Gym has no data set {config.dataset!r}{did_you_mean(config.dataset, DATASETS)}")
    known = [f.name for f in dataclasses.fields(DATASETS[config.dataset][1]) if f.name not in ("seed", "size")]
    for key in config.config:
        if key not in known:
            raise DataError(f"the data set {config.dataset!r} has no setting {key!r}{did_you_mean(key, known)}")
    try:
        return create_dataset(config.dataset, seed=seed, size=size, **config.config)
    except Exception as error:
        raise DataError(f"the data set {config.dataset!r} refuses {config.config}: {error}") from error


def _draw(
    config: ReasoningGym,
    make: Callable[[int, int], Any],
    count: int,
    seed: int,
    taken: Collection[str],
    level: float | None = None,
) -> list[Problem]:
    """Up to `count` problems whose prompts are not in `taken`, which they join where it is a set."""
    seen = taken if isinstance(taken, set) else set(taken)
    found: list[Problem] = []
    for attempt in range(_TRIES if level is None else 8 * _TRIES):
        if len(found) == count:
            break
        # Item i of seed s is item i - 1 of seed s + 1, so batches must start far apart.
        start = derive(seed, attempt) % (1 << 31)
        entries = make(start, count)
        for index in range(count):
            if len(found) == count:
                break
            problem = _problem(config, entries[index], {"seed": start, "size": count, "index": index})
            if problem.prompt not in seen and level in (None, problem.level):
                seen.add(problem.prompt)
                found.append(problem)
    return found


def _problem(config: ReasoningGym, entry: dict[str, Any], source: dict[str, int]) -> Problem:
    reference = entry["answer"]
    return Problem(
        prompt=_prompt(config, entry),
        reference=None if reference is None else str(reference),
        category=config.dataset,
        level=_level(entry.get("metadata", {})),
        aux=json.dumps(source),
    )


def _prompt(config: ReasoningGym, entry: dict[str, Any]) -> str:
    return f"{entry['question']}\n\n{config.instruction}" if config.instruction else str(entry["question"])


def _level(metadata: dict[str, Any]) -> float | None:
    """The one setting that makes this data set hard, or the problem's own place in its range."""
    difficulty = metadata.get("difficulty")
    if not isinstance(difficulty, dict) or len(difficulty) != 1:
        return None
    ((name, value),) = difficulty.items()
    if isinstance(value, tuple | list) and len(value) == 2 and value[1] - value[0] <= _WIDEST:
        value = metadata.get(name)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain else None


def _score(config: ReasoningGym, make: Callable[[int, int], Any], problem: Problem, completion: str) -> Score:
    answer = extractor(config.extract)(completion)
    if not answer:
        return Score(subject_id=0, verdict="fail", value=0.0, reason=f"no answer found (extract: {config.extract})")
    source = json.loads(problem.aux or "{}")
    entries = make(source["seed"], source["size"])
    entry = entries[source["index"]]
    if _prompt(config, entry) != problem.prompt:
        raise DataError("Reasoning Gym now generates another problem here: its version is not the one that made this")
    if _evaluates(type(entries).__module__) and answer != entry["answer"] and not harmless(answer):
        return Score(
            subject_id=0, verdict="fail", value=0.0, answer=answer, reason="more than values and arithmetic: not scored"
        )
    try:
        value = float(entries.score_answer(answer, entry))
    except Exception as error:
        if problem.reference is not None:
            entries.score_answer(problem.reference, entry)  # raises too where it is not the answer that is at fault
        said = f"the scorer cannot read it: {type(error).__name__}: {error}"
        return Score(subject_id=0, verdict="fail", value=0.0, answer=answer, reason=said)
    verdict = "pass" if value >= config.threshold else "fail"
    reason = None if verdict == "pass" else f"scored {value:g}, {config.threshold:g} passes"
    return Score(subject_id=0, verdict=verdict, value=value, answer=answer, reason=reason)


@cache
def _evaluates(module: str) -> bool:
    source = inspect.getsource(sys.modules[module])
    return any(call in source for call in ("eval(", "parse_expr(", "sympify("))
