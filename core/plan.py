"""What a run would do: stages, rounds, rollouts and tokens, what is committed, and how long the last run took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from strop.core.execute import run_plugin
from strop.core.plugin import Task
from strop.core.recipe import Recipe, Step, default_run_id
from strop.core.seeds import derive
from strop.storage.console import Console, open_console


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a round."""

    label: str
    kind: str
    plugin: str
    rollouts: int | None
    """Rollouts it samples a round; None where it samples none or nobody can say beforehand."""
    committed_rounds: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it runs."""

    recipe: str
    run_id: str
    rounds: int
    committed_rounds: int
    """Rounds that are complete, round 0 (problems, base and its examination) aside."""
    stages: tuple[StagePlan, ...]
    problems: dict[str, int]
    """Problems by split."""
    rollouts: int | None
    """Still to be sampled."""
    tokens: int | None
    """Tokens of them: by the mean of the last run in the lake, else by `max_tokens`."""
    tokens_basis: str
    """'measured' or 'at most'."""
    estimated_seconds: float | None
    """By the seconds a round of this recipe last took in this lake; None = never run here."""


ROUNDS_DONE = "SELECT stage, round FROM stage_runs WHERE run_id = '{run_id}' GROUP BY stage, round, shards \
HAVING count(*) = shards"
ROUND_SECONDS = """
SELECT round > 0 AS is_round, median(seconds) FROM (
    SELECT s.run_id, s.round, epoch(max(s.started_at + to_microseconds(cast(s.seconds * 1e6 AS BIGINT))))
           - epoch(min(s.started_at)) AS seconds
    FROM stage_runs s JOIN runs r ON r.run_id = s.run_id WHERE r.recipe = '{recipe}' GROUP BY s.run_id, s.round
) GROUP BY is_round
"""
MEAN_TOKENS = "SELECT avg(r.n_tokens) FROM rollouts r JOIN runs u ON u.run_id = r.run_id WHERE u.recipe = '{recipe}'"


def plan(recipe: Recipe, lake: Path | None = None, run_id: str | None = None, rounds: int | None = None) -> Plan:
    """Plan a run of the recipe; the lake, where there is one, tells what is done and how fast it went.

    Raises StropError when a task cannot give its problems.
    """
    run_id = run_id or default_run_id(recipe)
    rounds = rounds or recipe.rounds
    console = open_console(lake) if lake is not None and (lake / "catalog.sqlite").is_file() else None
    try:
        return _plan(recipe, console, run_id, rounds)
    finally:
        if console is not None:
            console.close()


def _plan(recipe: Recipe, console: Console | None, run_id: str, rounds: int) -> Plan:
    done: dict[str, set[int]] = {}
    seconds: dict[bool, float] = {}
    mean_tokens = None
    if console is not None:
        for stage, round in console.query(ROUNDS_DONE.format(run_id=run_id.replace("'", "''"))).rows:
            done.setdefault(str(stage), set()).add(int(round))
        seconds = {bool(k): float(v) for k, v in console.query(ROUND_SECONDS.format(recipe=recipe.name)).rows if v}
        mean_tokens = console.query(MEAN_TOKENS.format(recipe=recipe.name)).rows[0][0]
    problems = _problems(recipe)
    stages = tuple(
        StagePlan(
            step.label,
            step.kind,
            step.plugin.name,
            _rollouts(recipe, step, problems),
            len([r for r in done.get(step.label, ()) if r > 0]),
        )
        for step in recipe.round
    )
    complete = [r for r in range(1, rounds + 1) if all(r in done.get(step.label, set()) for step in recipe.round)]
    left = rounds - len(complete)
    per_round = [s.rollouts for s in stages if s.kind == "generate"]
    base = (
        0
        if "heldout" in done and 0 in done["heldout"]
        else sum(s.rollouts or 0 for s in stages if s.label == "heldout")
    )
    rollouts = None if None in per_round else left * sum(r or 0 for r in per_round) + base
    longest = max((getattr(s.config, "max_tokens", 0) for s in recipe.round if s.kind == "generate"), default=0)
    tokens = None if rollouts is None else round_to(rollouts * (mean_tokens or longest))
    estimate = None
    if True in seconds:
        estimate = seconds[True] * left + (0.0 if 0 in done.get("base", ()) else seconds.get(False, 0.0))
    return Plan(
        recipe.name,
        run_id,
        rounds,
        len(complete),
        stages,
        problems,
        rollouts,
        tokens,
        "measured" if mean_tokens else "at most",
        estimate,
    )


def round_to(value: float) -> int:
    """A count to three significant digits: an estimate should not look exact."""
    return int(float(f"{value:.3g}"))


def _problems(recipe: Recipe) -> dict[str, int]:
    counts = {"train": 0, "heldout": 0}
    for step in recipe.tasks:
        task = run_plugin(step.plugin, step.config, {"seed": derive(recipe.seed, "task")})
        if isinstance(task, Task):
            for problem in task.problems():
                counts[problem.split] += 1
    return counts


def _rollouts(recipe: Recipe, step: Step, problems: dict[str, int]) -> int | None:
    n = getattr(step.config, "n", None)
    if step.kind != "generate" or n is None:
        return None
    if step.split == "heldout":
        return problems["heldout"] * int(n)
    for other in recipe.round:
        if other.kind == "select":
            chosen = getattr(other.config, "problems", None)
            return None if chosen is None else min(int(chosen), max(problems["train"], 1)) * int(n)
    return None
