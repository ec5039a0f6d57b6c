"""Independent completions of each problem at one temperature.

Source: the sampling step of every method that rejects, ranks or groups completions, e.g. Yuan et al. 2023, 2308.01825.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from strop.core.engine import Completion, Engine, Request, Sampling
from strop.core.plugin import LATER, Config, stage
from strop.storage.tables import Context, Plan, Problem, Rollout


class Sample(Config):
    """How to sample."""

    n: PositiveInt = 8
    """Completions a problem, where the plan does not say."""
    temperature: NonNegativeFloat = 1.0
    """0 = greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass; 1 = off."""
    top_k: NonNegativeInt = 0
    """Tokens kept; 0 = off."""
    min_p: Annotated[float, Field(ge=0, lt=1), LATER] = 0.0
    """Least probability of a token, as a share of the likeliest one's; 0 = off."""
    max_tokens: PositiveInt = 512
    """Longest completion, in tokens; a longer one is cut off and says so."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion."""
    stop_token_ids: Annotated[tuple[NonNegativeInt, ...], LATER] = ()
    """Tokens that end a completion, beside the end of sequence."""


@stage("generate")
def sample(
    config: Sample,
    *,
    plan: list[Plan],
    problems: dict[int, Problem],
    contexts: dict[int, Context],
    engine: Engine,
    sample_seed: Callable[[Problem, int], int],
    progress: Callable[[int, int], None],
) -> list[Rollout]:
    """Rollouts in the order of the plan, samples of one problem side by side. Rows whose `params` differ are sampled
    in turn. Raises ValueError for a plan row that starts inside another rollout, or whose `params` do not fit."""
    orders = [order(config, row, problems[row.problem_id], contexts, engine, sample_seed) for row in plan]
    return [rollout for rollouts in sampled(config, orders, engine, progress) for rollout in rollouts]


@dataclass(frozen=True, slots=True)
class Order:
    """Some completions of one prompt."""

    row: Plan
    prompt: str
    seeds: tuple[int, ...]
    first: int = 0
    """Index of the first sample."""
    train_prompt: str | None = None


def sampled(
    config: Sample, orders: Sequence[Order], engine: Engine, progress: Callable[[int, int], None]
) -> list[list[Rollout]]:
    """Of each order; `progress` hears of rollouts and tokens so far."""
    found: list[list[Rollout]] = [[] for _ in orders]
    done = tokens = 0
    for text in sorted({order.row.params or "" for order in orders}):
        here = [i for i, order in enumerate(orders) if (order.row.params or "") == text]
        settings = settings_of(config, text)
        requests = [Request(prompt=orders[i].prompt, seeds=orders[i].seeds) for i in here]

        def report(rollouts: int, more: int, before: tuple[int, int] = (done, tokens)) -> None:
            progress(before[0] + rollouts, before[1] + more)

        completions = engine.sample(requests, Sampling(**settings.model_dump(exclude={"n"})), report)
        for i, made in zip(here, completions, strict=True):
            found[i] = [_rollout(settings, orders[i], j, c, engine.name) for j, c in enumerate(made)]
            done += len(made)
            tokens += sum(len(c.token_ids) if c.n_tokens is None else c.n_tokens for c in made)
    return found


def settings_of(config: Sample, params: str | None) -> Sample:
    """Those of a plan row with these `params`, without what belongs to another generator."""
    own = {name: getattr(config, name) for name in Sample.model_fields}
    try:
        overrides: dict[str, Any] = json.loads(params) if params else {}
        return Sample.model_validate({**own, **overrides})
    except (ValidationError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the plan's params {params!r} are no settings of `sample`: {error}") from error


def order(
    config: Sample,
    row: Plan,
    problem: Problem,
    contexts: dict[int, Context],
    engine: Engine,
    sample_seed: Callable[[Problem, int], int],
) -> Order:
    """What a plan row asks for."""
    if row.start_rollout_id is not None:
        raise ValueError(f"`sample` starts at the problem, and the plan starts inside rollout {row.start_rollout_id}")
    number = settings_of(config, row.params).n if row.n is None else row.n
    seeds = tuple(sample_seed(problem, i) for i in range(number))
    text = None if row.context_id is None else contexts[row.context_id].text
    return Order(row, prompt_of(problem, text, engine), seeds)


def prompt_of(problem: Problem, before: str | None, engine: Engine) -> str:
    """The problem as the policy reads it, behind that text where there is one."""
    messages = json.loads(problem.messages) if problem.messages else None
    if before is None:
        return engine.render(problem.prompt, messages)
    if messages:
        return engine.render(problem.prompt, [{"role": "system", "content": before}, *messages])
    return engine.render(f"{before}\n\n{problem.prompt}")


def _rollout(config: Sample, order: Order, i: int, found: Completion, engine: str) -> Rollout:
    row = order.row
    return Rollout(
        problem_id=row.problem_id,
        plan_id=row.plan_id or None,
        context_id=row.context_id,
        sample_index=order.first + i,
        prompt=order.prompt,
        train_prompt=order.train_prompt,
        completion=found.text,
        n_tokens=len(found.token_ids) if found.n_tokens is None else found.n_tokens,
        token_ids=found.token_ids,
        logps=found.logps,
        entropy=found.entropy,
        self_certainty=found.self_certainty,
        finish_reason=found.finish_reason,
        error=found.error,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p or None,
        max_tokens=config.max_tokens,
        stop=list(config.stop),
        stop_token_ids=list(config.stop_token_ids) or None,
        engine=engine,
        seed=order.seeds[i],
        latency_s=found.latency_s,
        n_prompt_tokens=found.n_prompt_tokens,
        cost=found.cost,
    )
