"""What a run would do: stages, rounds, rollouts and tokens, what is committed, and how long the last run took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from strop.core.execute import blamed_on, ref, task_for
from strop.core.problems import key_of
from strop.core.recipe import Recipe, Step, default_run_id
from strop.core.seeds import derive
from strop.core.subjects import SPLITS
from strop.storage.console import Console, open_console
from strop.storage.place import place_of


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a round."""

    label: str
    kind: str
    plugin: str
    rollouts: int | None
    """Rollouts it samples in round 1; None where it samples none or nobody can say beforehand."""
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
    """By the seconds that rounds of this recipe took in this lake (median); None = never run here."""


ROUNDS_DONE = "SELECT stage, round FROM stage_runs WHERE run_id = '{run_id}' GROUP BY stage, round, shards \
HAVING count(*) = shards"
ROUND_SECONDS = """
SELECT is_round, median(seconds) FROM (
    SELECT run_id, is_round, sum(greatest(0, ended - greatest(began, coalesce(before, began)))) AS seconds FROM (
        SELECT *, max(ended) OVER (
            PARTITION BY run_id, round ORDER BY began, ended ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before FROM (
            SELECT s.run_id, s.round, s.round > 0 AS is_round, s.stage, epoch(min(s.started_at)) AS began,
                   epoch(max(s.started_at + to_microseconds(cast(s.seconds * 1e6 AS BIGINT)))) AS ended
            FROM stage_runs s JOIN runs r ON r.run_id = s.run_id WHERE r.recipe = '{recipe}' AND s.stage <> 'run'
            GROUP BY s.run_id, s.round, s.stage
        )
    ) GROUP BY run_id, round, is_round
    HAVING NOT is_round OR count(*) >= {stages}
) GROUP BY is_round
"""
"""By stage, so that the time between a kill and the resume counts as no round's, and once where two stages were at
work; complete rounds only."""
MEAN_TOKENS = "SELECT avg(r.n_tokens) FROM rollouts r JOIN runs u ON u.run_id = r.run_id WHERE u.recipe = '{recipe}'"


def plan(recipe: Recipe, lake: Path | None = None, run_id: str | None = None, rounds: int | None = None) -> Plan:
    """Plan a run of the recipe; the lake, where there is one, tells what is done and how fast it went.

    Raises StropError when a task cannot give its problems.
    """
    run_id = run_id or default_run_id(recipe)
    rounds = recipe.rounds if rounds is None else rounds
    console = open_console(lake) if lake is not None and place_of(lake).exists else None
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
        timed = ROUND_SECONDS.format(recipe=recipe.name, stages=len(recipe.round))
        seconds = {bool(k): float(v) for k, v in console.query(timed).rows if v}
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
    complete = [r for r in range(1, rounds + 1) if all(r in done.get(step.label, ()) for step in recipe.round)]
    rollouts = _still_to_sample(recipe, problems, done, rounds)
    longest = max((getattr(s.config, "max_tokens", 0) for s in recipe.round if s.kind == "generate"), default=0)
    estimate = None
    if True in seconds:
        first = 0.0 if all(0 in done.get(s.label, ()) for s in recipe.examine) else seconds.get(False, 0.0)
        estimate = seconds[True] * (rounds - len(complete)) + first
    return Plan(
        recipe.name,
        run_id,
        rounds,
        len(complete),
        stages,
        problems,
        rollouts,
        None if rollouts is None else round_to(rollouts * (mean_tokens or longest)),
        "measured" if mean_tokens else "at most",
        estimate,
    )


def _still_to_sample(recipe: Recipe, problems: dict[str, int], done: dict[str, set[int]], rounds: int) -> int | None:
    """Over the rounds whose sampling is not committed; the base is examined in round 0."""
    total = 0
    for step in recipe.round:
        if step.kind == "generate":
            for round in range(0 if step.split == "heldout" else 1, rounds + 1):
                if round not in done.get(step.label, ()):
                    rollouts = _rollouts(recipe, step, problems, round)
                    if rollouts is None:
                        return None
                    total += rollouts
    return total


def round_to(value: float) -> int:
    """A count to three significant digits: an estimate should not look exact."""
    return int(float(f"{value:.3g}"))


def _problems(recipe: Recipe) -> dict[str, int]:
    """Distinct problems by split: of equal ones a run keeps the first."""
    counts = dict.fromkeys(SPLITS, 0)
    for step in recipe.tasks:
        task = task_for(ref(step, recipe.folder), derive(recipe.seed, "task"))
        with blamed_on(step.plugin):
            for split, _ in {(problem.split, key_of(problem)) for problem in task.problems()}:
                counts[split] = counts.get(split, 0) + 1
    return counts


def _rollouts(recipe: Recipe, step: Step, problems: dict[str, int], round: int = 1) -> int | None:
    """Rollouts of a step in a round, where every synthesizer has made as many problems as it may before."""
    n = getattr(step.config, "n", None)
    if step.kind != "generate" or n is None:
        return None
    if step.split == "heldout":
        return problems["heldout"] * int(n)
    chosen = [getattr(other.config, "problems", None) for other in recipe.round if other.kind == "select"]
    if None in chosen:
        return None
    made = sum(getattr(other.config, "problems", 0) for other in recipe.round if other.kind == "synthesize")
    pool = problems["train"] + (round - 1) * made
    return sum(min(int(number), pool) for number in chosen if number is not None) * int(n)
