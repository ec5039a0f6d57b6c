"""`strop rerun`: a new run on the rollouts of others, from a stage on. What it takes, and what must fit for that."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from strop.core.binding import differences
from strop.core.recipe import TRAINS, Recipe, Step, canonical_json, load
from strop.core.reuse import PROBLEMS, Reuse, Reusing, SourceRound, SourceRun, reusing, rows_of, source_run
from strop.core.stored import kind_of, stored_recipe
from strop.core.visible import made_by
from strop.storage.errors import LakeError, RecipeError, StageError, did_you_mean
from strop.storage.ids import digest
from strop.storage.lake import Lake
from strop.storage.tables import Run

ROUNDS = re.compile(r"(?P<run>.+)@(?P<first>\d+)(-(?P<last>\d+))?")

LEAKS = """
WITH visible AS (SELECT * FROM problems WHERE stage_run_id IN (SELECT unnest(?::BIGINT[])))
SELECT t.run_id, h.run_id, t.prompt FROM visible t JOIN visible h
ON t.prompt = h.prompt AND t.messages IS NOT DISTINCT FROM h.messages AND t.reference IS NOT DISTINCT FROM h.reference
WHERE t.split = 'train' AND t.status = 'active' AND h.split = 'heldout' ORDER BY ALL LIMIT 1
"""
"""By content, as task labels may differ between recipes."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """A rerun that fits its sources."""

    recipe: Recipe
    reuse: Reuse
    run_id: str
    until: str
    """Label of the last stage of a round that is run."""
    left_out: tuple[str, ...]
    """Rounds of the sources that were not named one by one and are not complete, in words."""


@dataclass(frozen=True, slots=True)
class ReusedStage:
    """What stands for one stage of one round of the new run; `shards` 0 = the stage runs afresh."""

    round: int
    stage: str
    sources: tuple[str, ...]
    """Runs that did the work."""
    shards: int
    rows: dict[str, int]
    """By table."""


def prepare(
    lake: Lake,
    sources: Sequence[str],
    start: str,
    *,
    until: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    run_id: str | None = None,
    pool: bool = False,
) -> Rerun:
    """Check a rerun against the lake; writes nothing. `sources` are RUN, RUN@3 or RUN@1-3, `recipe` a file or name.

    Without a recipe it is the first source's. Raises StropError: no such run or round, a round that is not complete,
    a stage before `start` that the source did otherwise, a problem trained on here and held out there.
    """
    named = [_parsed(lake, text) for text in sources]
    runs = {run.run_id: source_run(lake, run) for run, _ in named}
    for source in runs.values():
        if not source.stages:
            raise LakeError(
                f"run {source.run.run_id!r} was imported: it has no stages to re-use; name runs of a recipe"
            )
    first = named[0][0]
    seed = None if any(text.startswith("seed=") for text in overrides) else first.seed
    made = load(recipe, overrides=overrides, seed=seed) if recipe else stored_recipe(first, overrides)
    at = made.position(start)
    until_at = _last(made, at) if until is None else made.position(until, last=True)
    if until_at < at:
        raise RecipeError(f"--to {until} comes before --from {start} in the round; name a stage from {start} on")
    _check_tasks(made, runs[first.run_id], [runs[run.run_id] for run, _ in named[1:]])
    for source in runs.values():
        _check_stages(made, at, source)
    rounds: list[SourceRound] = []
    left_out: list[str] = []
    for run, wanted in named:
        found, incomplete = _rounds(runs[run.run_id], at, wanted)
        rounds += found
        left_out += incomplete
    if pool and any(step.kind in TRAINS for step in made.round[:at]):
        raise RecipeError("--pool makes one round of several, and a round has one policy: use --from train or earlier")
    reuse = Reuse(made.round[at].label, (tuple(rounds),) if pool else tuple((source,) for source in rounds))
    _check_shards(reusing(lake, made, reuse))
    run_id = run_id or f"{made.name}-from-{reuse.start}-{digest(reuse.to_json(), made.identity())[:6]}"
    if run_id in runs:
        raise RecipeError(f"{run_id!r} is a source of this rerun; give the new run another --run-id")
    return Rerun(made, reuse, run_id, made.round[until_at].label, tuple(left_out))


def preview(lake: Lake, rerun: Rerun) -> list[ReusedStage]:
    """Every stage of every round, with what stands for it. Writes nothing."""
    source = reusing(lake, rerun.recipe, rerun.reuse)
    labels = [step.label for step in rerun.recipe.round]
    labels = labels[: labels.index(rerun.until) + 1]
    zero = [f"task.{task.name}" for task in rerun.recipe.tasks]
    zero += [PROBLEMS, "base", *(step.label for step in rerun.recipe.examine if step.label in labels)]
    found = []
    for number in range(len(rerun.reuse.rounds) + 1):
        for label in labels if number else zero:
            shards = [run for runs in (source.shards(number, label) or {}).values() for run in runs]
            if shards or label != PROBLEMS:
                runs = tuple(sorted({run.run_id for run in shards}))
                found.append(ReusedStage(number, label, runs, len(shards), rows_of(lake, shards)))
    return found


def _parsed(lake: Lake, text: str) -> tuple[Run, range | None]:
    """The run and the rounds of `RUN`, `RUN@3`, `RUN@1-3`; None = all it has."""
    runs = {run.run_id: run for run in lake.rows(Run)}
    if text in runs:
        return runs[text], None
    match = ROUNDS.fullmatch(text)
    name = match["run"] if match else text
    if name not in runs:
        raise LakeError(f"the lake {lake.root} has no run {name!r}{did_you_mean(name, runs)}")
    assert match is not None  # else the name would be the whole text
    first = int(match["first"])
    last = int(match["last"] or first)
    if not 1 <= first <= last:
        raise LakeError(f"{text!r}: rounds count from 1 and go up; write {name}@1-3, or {name} for all it has")
    return runs[name], range(first, last + 1)


def _rounds(source: SourceRun, at: int, wanted: range | None) -> tuple[list[SourceRound], list[str]]:
    """The rounds meant, and in words those that were not named and are not complete up to the stage."""
    name = source.run.run_id
    there = sorted({round for round, _ in source.ledger if round > 0})
    found, left_out = [], []
    for number in wanted or there:
        labels = [label for label, _ in source.stages[:at]]
        lacking = [label for label in labels if not source.committed(number, label)]
        if not lacking and number in there:
            found.append(SourceRound(name, number))
        elif wanted is None:
            left_out.append(f"{name}@{number} (no complete {lacking[0]})")
        elif number not in there:
            has = f"rounds {there[0]} to {there[-1]}" if there else "no round yet"
            raise LakeError(f"run {name!r} has no round {number}; it has {has}")
        else:
            raise LakeError(
                f"round {number} of {name!r} is not complete: {lacking[0]} is missing or half done. Finish it with "
                f"`strop run --run-id {name}`, or name other rounds"
            )
    if not found:
        why = ", ".join(left_out) or "it has none at all"
        raise LakeError(f"run {name!r} has no round that is complete up to this stage: {why}")
    return found, left_out


def _check_tasks(recipe: Recipe, first: SourceRun, others: Sequence[SourceRun]) -> None:
    """Round 0 is the first source's, with its base and tasks; the others may bring further problems of these tasks."""
    mine = {"base": recipe.base.settings(), "tasks": {task.name: task.settings() for task in recipe.tasks}}
    theirs = {key: first.canonical[key] for key in mine}
    if changed := differences(theirs, mine):
        raise RecipeError(
            f"the recipe has another base or other tasks than {first.run.run_id!r}, whose problems and rollouts are "
            f"re-used: {changed}. Put it back, or sample anew with `strop run`"
        )
    for source in others:
        unknown = set(source.canonical["tasks"]) - {task.name for task in recipe.tasks}
        if unknown:
            raise RecipeError(
                f"run {source.run.run_id!r} has problems of the task {min(unknown)!r}, which the recipe has not"
                f"{did_you_mean(min(unknown), [task.name for task in recipe.tasks])}; leave that run out"
            )


def _check_stages(recipe: Recipe, at: int, source: SourceRun) -> None:
    """The stages that are not run again are those the source ran."""
    name = source.run.run_id
    for i, step in enumerate(recipe.round[:at]):
        label, settings = source.stages[i] if i < len(source.stages) else ("", {})
        mine = _plain(step)
        if kind_of(label) != kind_of(step.label):
            raise RecipeError(
                f"stage {i + 1} of the recipe is {step.label!r}, and of {name!r} "
                f"{f'it is {label!r}' if label else 'there is none'}: what comes before --from is re-used and must be "
                f"the same. Use --from {step.label}"
            )
        if mine != settings:
            raise RecipeError(
                f"{step.label} is not as {name!r} ran it: {differences({step.label: settings}, {step.label: mine})}. "
                f"What comes before --from is re-used and must be the same: use --from {step.label}"
            )


def _plain(step: Step) -> dict[str, object]:
    """The step's settings as the lake keeps them."""
    found: dict[str, object] = json.loads(canonical_json(step.settings()))
    return found


def _check_shards(source: Reusing) -> None:
    """No rollouts twice, and nothing that is trained on is held out by another source."""
    seen: set[int] = set()
    for number in range(1, len(source.reuse.rounds) + 1):
        for run in source.round_shards(number):
            if made_by(run) in seen:
                raise StageError(
                    f"{run.stage} of {run.run_id}@{run.round} would be re-used twice: name each round once, and no "
                    "rerun beside a run it re-uses"
                )
            seen.add(made_by(run))
    tasks = [source.shards(0, f"task.{task.name}") or {} for task in source.recipe.tasks]
    zero = [run for by in tasks for runs in by.values() for run in runs]
    ids = {made_by(run) for run in (*zero, *source.problem_shards())} | seen
    for train, heldout, prompt in source.lake.query(LEAKS, [sorted(ids)]):
        raise StageError(
            f"a training problem of {train!r} is held out in {heldout!r}: {prompt!r}. Their rollouts cannot be used "
            "together, as the policy would be examined on what it was trained on; rerun them one by one"
        )


def _last(recipe: Recipe, at: int) -> int:
    """The last stage before training or examination; the end of the round where `--from` is there already."""
    ends = [i for i, step in enumerate(recipe.round) if step.kind == "train" or step.split == "heldout"]
    end = min(ends, default=len(recipe.round))
    return end - 1 if at < end else len(recipe.round) - 1
