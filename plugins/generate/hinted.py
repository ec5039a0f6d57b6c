"""Independent completions, and for problems they all fail some more behind a hint, which training does not see.

Hints are tried in their order, the weakest first, until a completion passes. What was sampled behind one has the hint
in `prompt` and not in `train_prompt`; it belongs to the problem's group, but says nothing of how often the problem is
solved. Its log-probabilities are those behind the hint, so that a policy gradient's ratio is
pi(y | x) / pi_old(y | x, hint).

Source: Zelikman et al. 2022, 2203.14465 (STaR's rationalisation: one try with the answer as the hint); Scaf-GRPO,
2510.19807 (hints of rising strength, the weakest that helps, none in the first part of the training); Guide, 2506.13923
(for groups that fail, and the ratio).
Left out: Scaf-GRPO's exchange of a failed completion for the hinted one; the group grows instead.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from strop.core.engine import Engine
from strop.core.plugin import stage
from strop.core.verdicts import verdicts
from strop.plugins.generate.sample import Order, Sample, order, prompt_of, sampled
from strop.storage.errors import did_you_mean
from strop.storage.tables import Context, Plan, Problem, Rollout, Score

Verifiers = dict[str, Callable[[list[Rollout]], list[Score]]]


class Hinted(Sample):
    """How to sample, and what to say where that fails."""

    hints: Annotated[tuple[str, ...], Field(min_length=1)] = ("The answer is {answer}.",)
    """Weakest first. `{answer}` is the known answer, any other name what the problem's `aux` has under it; a problem
    that lacks one is not hinted at so."""
    tries: PositiveInt = 1
    """Completions behind each hint."""
    after: NonNegativeInt = 0
    """Rounds without hints, at first."""
    verifier: str | None = None
    """Label of the verify stage that says what failed; null = all of them together."""

    @field_validator("hints")
    @classmethod
    def _are_templates(cls, hints: tuple[str, ...]) -> tuple[str, ...]:
        for hint in hints:
            try:
                names = [name for _, name, _, _ in string.Formatter().parse(hint) if name is not None]
            except ValueError as error:
                raise ValueError(f"the hint {hint!r} is no template ({error}): write {{{{ for a brace") from error
            if not all(name.isidentifier() for name in names):
                raise ValueError(f"the hint {hint!r} has a name that is none: write {{answer}}, or {{{{ for a brace")
        return hints


@stage("generate")
def hinted(
    config: Hinted,
    *,
    plan: list[Plan],
    problems: dict[int, Problem],
    contexts: dict[int, Context],
    engine: Engine,
    sample_seed: Callable[[Problem, int], int],
    verifiers: Verifiers,
    progress: Callable[[int, int], None],
    round: int,
) -> list[Rollout]:
    """Rollouts in the order of the plan, those behind hints after the others of their problem.

    Raises ValueError where no verify stage can say what failed.
    """
    asked = [order(config, row, problems[row.problem_id], contexts, engine, sample_seed) for row in plan]
    found = sampled(config, asked, engine, progress)
    if round <= config.after:
        return [rollout for rollouts in found for rollout in rollouts]
    judges = _judges(config, verifiers)
    left = [i for i, passed in enumerate(_passed(found, judges)) if not passed]
    for level, hint in enumerate(config.hints):
        orders = {
            i: made
            for i in left
            if (made := _behind(config, hint, level, asked[i], problems, contexts, engine, sample_seed)) is not None
        }
        done = sum(map(len, found)), sum(rollout.n_tokens for rollouts in found for rollout in rollouts)
        more = sampled(
            config,
            list(orders.values()),
            engine,
            lambda rollouts, tokens, done=done: progress(done[0] + rollouts, done[1] + tokens),  # type: ignore[misc]
        )
        for i, rollouts in zip(orders, more, strict=True):
            found[i] += rollouts
        helped = {i for i, passed in zip(orders, _passed(more, judges), strict=True) if passed}
        left = [i for i in left if i not in helped]
    return [rollout for rollouts in found for rollout in rollouts]


def _judges(config: Hinted, verifiers: Verifiers) -> Verifiers:
    if not verifiers:
        raise ValueError("hinted samples again what failed, and nothing says what did: put a `verify` behind it")
    if config.verifier is None:
        return verifiers
    if config.verifier not in verifiers:
        raise ValueError(f"hinted: no verify stage {config.verifier!r}{did_you_mean(config.verifier, verifiers)}")
    return {config.verifier: verifiers[config.verifier]}


def _passed(found: list[list[Rollout]], judges: Verifiers) -> list[bool]:
    """Whether any of each list's rollouts passes; where it cannot be said, nothing has failed."""
    numbered = [[replace(r, rollout_id=(i << 20) + j + 1) for j, r in enumerate(rs)] for i, rs in enumerate(found)]
    rollouts = [rollout for members in numbered for rollout in members]
    if not rollouts:
        return []
    verdict = verdicts([score for judge in judges.values() for score in judge(rollouts)])
    said = [[verdict.get(rollout.rollout_id) for rollout in members] for members in numbered]
    return ["pass" in each or set(each) <= {None, "error"} for each in said]


def _behind(
    config: Hinted,
    hint: str,
    level: int,
    asked: Order,
    problems: dict[int, Problem],
    contexts: dict[int, Context],
    engine: Engine,
    sample_seed: Callable[[Problem, int], int],
) -> Order | None:
    """None where the problem lacks what the hint names."""
    problem, row = problems[asked.row.problem_id], asked.row
    known: dict[str, Any] = json.loads(problem.aux) if problem.aux else {}
    if problem.reference is not None:
        known = {**known, "answer": problem.reference}
    try:
        text = hint.format_map(known)
    except KeyError:
        return None
    if row.context_id is not None:
        text = f"{contexts[row.context_id].text}\n\n{text}"
    first = len(asked.seeds) + level * config.tries
    seeds = tuple(sample_seed(problem, first + i) for i in range(config.tries))
    return Order(row, prompt_of(problem, text, engine), seeds, first, asked.prompt)
