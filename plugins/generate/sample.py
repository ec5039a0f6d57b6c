"""Independent completions of each problem at one temperature.

Source: the sampling step of every method that rejects, ranks or groups completions, e.g. Yuan et al. 2023, 2308.01825.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from strop.core.engine import Completion, Engine, Request, Sampling
from strop.core.plugin import Config, stage
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
    max_tokens: PositiveInt = 512
    """Longest completion, in tokens; a longer one is cut off and says so."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""


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
    """Rollouts in the order of the plan, samples of one problem side by side."""
    sampling = Sampling(**config.model_dump(exclude={"n"}))
    requests = []
    for row in plan:
        problem = problems[row.problem_id]
        seeds = tuple(sample_seed(problem, i) for i in range(row.n or config.n))
        requests.append(Request(prompt=_prompt(problem, contexts, row, engine), seeds=seeds))
    completions = engine.sample(requests, sampling, progress)
    return [
        _rollout(config, row, request, i, completion, engine.name)
        for row, request, found in zip(plan, requests, completions, strict=True)
        for i, completion in enumerate(found)
    ]


def _prompt(problem: Problem, contexts: dict[int, Context], row: Plan, engine: Engine) -> str:
    messages = json.loads(problem.messages) if problem.messages else None
    if row.context_id is None:
        return engine.render(problem.prompt, messages)
    text = contexts[row.context_id].text
    if messages:
        return engine.render(problem.prompt, [{"role": "system", "content": text}, *messages])
    return engine.render(f"{text}\n\n{problem.prompt}")


def _rollout(config: Sample, row: Plan, request: Request, i: int, found: Completion, engine: str) -> Rollout:
    return Rollout(
        problem_id=row.problem_id,
        plan_id=row.plan_id or None,
        context_id=row.context_id,
        sample_index=i,
        prompt=request.prompt,
        completion=found.text,
        n_tokens=len(found.token_ids),
        token_ids=found.token_ids,
        logps=found.logps,
        entropy=found.entropy,
        self_certainty=found.self_certainty,
        finish_reason=found.finish_reason,
        error=found.error,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        stop=list(config.stop),
        engine=engine,
        seed=request.seeds[i],
        latency_s=found.latency_s,
    )
