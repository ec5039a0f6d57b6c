"""`strop reverify`: verdicts of a run made again, those that are errors or all, beside the old ones.

Each attempt is a stage run of its own, `verify~2` for the second time, so that it can be repeated as often as needed.
A new score names the one it supersedes; that one stays in its table and is no longer counted. Stages of the round that
are committed keep what they made of the old verdicts; those still to come see the new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from strop.core.binding import bind
from strop.core.control import overrides_for
from strop.core.events import OnEvent
from strop.core.execute import Call
from strop.core.finish import OF_ROLLOUT, Replaces
from strop.core.recipe import Recipe, Step, canonical_json, load
from strop.core.reward_models import keys_before
from strop.core.round import session_of
from strop.core.running import Shard
from strop.core.session import Session
from strop.core.steps import call_of, rollouts_of
from strop.core.stored import stored_recipe
from strop.core.verifying import handed, said_before
from strop.core.visible import AGAIN, made_by, places, read_rows, stage_of
from strop.storage.errors import LakeError, RecipeError, did_you_mean
from strop.storage.lake import Lake, open_lake
from strop.storage.locks import run_lock
from strop.storage.tables import Rollout, Run, Score, StageRun

DEPENDENT = {
    "train": ("verify", "filter", "synthesize", "build", "train", "train_reward", "control", "memory"),
    "heldout": ("verify", "evaluate", "gate", "control"),
}
"""Kinds of stage that make something of verdicts, by split."""


@dataclass(frozen=True, slots=True)
class Reverified:
    """What became of one verify stage of one round."""

    round: int
    stage: str
    scorer: str
    version: str
    """Version of the scorer that judged again."""
    rollouts: int
    """Verified again; 0 = there was nothing to do."""
    verdicts: dict[str, int]
    """The new verdicts on rollouts, by kind."""
    kept: tuple[str, ...]
    """Stages of the round that are committed and rest on the old verdicts."""


def reverify(
    root: Path,
    run_id: str,
    *,
    errors: bool,
    rounds: Sequence[int] | None = None,
    scorer: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    on_event: OnEvent = lambda event: None,
) -> list[Reverified]:
    """Verify again what is an error (`errors`), or whatever another version or other settings of the scorer judged.

    `recipe` names the file of the run's own recipe, where its plugins are local files; `overrides` may change settings
    of its verify stages, a time-out say. A killed call is finished by the same call.
    Raises StropError: no such run or scorer, another process drives the run, another recipe, a failed verifier.
    """
    with open_lake(root) as lake, run_lock(lake.root, run_id):
        plain, changed = _recipes(lake, run_id, recipe, overrides)
        session = session_of(plain, lake, run_id, on_event)
        try:
            bind(session)
            names = {step.name for step in changed.round if step.kind == "verify"}
            if scorer is not None and scorer not in names:
                raise RecipeError(f"run {run_id!r} has no verify stage {scorer!r}{did_you_mean(scorer, names)}")
            found = []
            for number in _rounds(session, rounds):
                session.recipe = changed.override(overrides_for(session, number))
                for step in (s for s in session.recipe.round if s.kind == "verify"):
                    if scorer in (None, step.name) and session.committed(number, step.label):
                        found.append(_again(session, number, step, errors=errors))
            return found
        finally:
            session.release()


def _recipes(lake: Lake, run_id: str, recipe: str | None, overrides: Sequence[str]) -> tuple[Recipe, Recipe]:
    """The run's recipe as it was started with, and with the overrides."""
    runs = {run.run_id: run for run in lake.rows(Run)}
    if run_id not in runs:
        raise LakeError(f"the lake {lake.root} has no run {run_id!r}{did_you_mean(run_id, runs)}")
    for text in overrides:
        if not text.startswith("verify."):
            raise RecipeError(
                f"--set {text!r}: only verify stages run here, e.g. --set verify.key=value; "
                "for anything else there is `strop rerun`"
            )
    run = runs[run_id]
    plain = load(recipe, seed=run.seed) if recipe else stored_recipe(run)
    return plain, plain.override(overrides) if overrides else plain


def _rounds(session: Session, rounds: Sequence[int] | None) -> list[int]:
    there = sorted({number for number, label in session.ledger if label != "run"})
    for number in rounds or ():
        if number not in there:
            raise LakeError(f"run {session.run_id!r} has no round {number}; it has {', '.join(map(str, there))}")
    return sorted(set(rounds)) if rounds is not None else there


def _again(session: Session, round: int, step: Step, *, errors: bool) -> Reverified:
    attempt = _attempt(session, round, step)
    step = replace(step, label=attempt)
    current = _current(session, round, step)
    chosen = _errors(current) if errors else _outdated(session, step, current)
    rollouts = [r for r in rollouts_of(session, round, step) if r.rollout_id in chosen or r.problem_id in chosen]
    if rollouts:
        replaces = {
            (s.subject_kind, s.subject_id, s.step_index, s.scorer): s.score_id
            for s in sorted(current, key=lambda s: s.score_id)
        }
        _run(session, round, step, rollouts, replaces)
    made = {made_by(run) for run in session.ledger.get((round, attempt), {}).values()}
    verdicts = Counter(
        score.verdict or "graded"
        for score in _scores(session, round)
        if score.stage_run_id in made and score.subject_kind == "rollout"
    )
    return Reverified(
        round,
        stage_of(attempt),
        step.name,
        step.plugin.mark.version,
        len(rollouts),
        dict(sorted(verdicts.items())),
        tuple(_rest_on(session, round, step)) if rollouts else (),
    )


def _attempt(session: Session, round: int, step: Step) -> str:
    """The label of this attempt: the one a kill left half done, else the next."""
    number = 2
    while session.ledger.get((round, f"{step.label}{AGAIN}{number}")):
        if not session.committed(round, f"{step.label}{AGAIN}{number}"):
            break
        number += 1
    return f"{step.label}{AGAIN}{number}"


def _scores(session: Session, round: int) -> list[Score]:
    """Every score of the round, superseded ones included."""
    return read_rows(session.lake, Score, session.rows_sql(Score.TABLE, superseded=True), "round = ?", [round])


def _current(session: Session, round: int, step: Step) -> list[Score]:
    """What the stage says now, this attempt's own shards aside: a resumed one must choose what it chose before."""
    runs = session.shards(round, {stage_of(step.label)})
    made = {made_by(run) for run in runs if run.stage != step.label}
    found = [score for score in _scores(session, round) if score.stage_run_id in made]
    replaced = {score.supersedes for score in found}
    return [score for score in found if score.score_id not in replaced]


def _errors(scores: Sequence[Score]) -> set[int]:
    """Rollouts (and problems, where the whole was judged) of which something could not be judged."""
    return {s.subject_id for s in scores if s.verdict == "error" and s.subject_kind in OF_ROLLOUT | {"problem"}}


def _outdated(session: Session, step: Step, scores: Sequence[Score]) -> set[int]:
    """Those last judged by another version of the scorer, or with other settings."""
    now = (step.plugin.mark.version, canonical_json(step.settings()))
    runs = {made_by(run): run for by in session.ledger.values() for run in by.values()}
    judged = {i: (run.plugin_version, run.config_json) for i, run in runs.items()}
    return {s.subject_id for s in scores if judged[s.stage_run_id] != now}


def _run(session: Session, round: int, step: Step, rollouts: list[Rollout], replaces: Replaces) -> None:
    groups = _groups(session, rollouts)
    policy = session.policy(rollouts[0].policy_id) if "engine" in step.plugin.mark.handles else None
    upstream = sorted({*session.upstream(round, step, policy), *keys_before(session, round, step)})
    shards = []
    for index, group in enumerate(groups):
        run = session.stage_run(round, step, index, len(groups), upstream)
        ids = {rollout.rollout_id for rollout in group} | {rollout.problem_id for rollout in group}
        theirs = {key: score for key, score in replaces.items() if key[1] in ids}
        shards.append(Shard(step, run, partial(_call, session, run, step, group, theirs)))
    session.running.run(round, step, shards, len(rollouts))


def _groups(session: Session, rollouts: list[Rollout]) -> list[list[Rollout]]:
    """Shards of rollouts: as many of the generator's shards together as make up eight times its size.

    Rollouts of one policy only, as a verifier may ask for the engine that wrote them.
    """
    by_run: dict[int, list[Rollout]] = {}
    for row in rollouts:
        by_run.setdefault(row.stage_run_id, []).append(row)
    order = places(session.ledger)
    groups: list[list[Rollout]] = [[]]
    for _, members in sorted(by_run.items(), key=lambda item: order[item[0]]):
        full = len(groups[-1]) >= 8 * session.recipe.shard_rollouts
        if full or (groups[-1] and groups[-1][0].policy_id != members[0].policy_id):
            groups.append([])
        groups[-1].extend(members)
    return groups


def _call(session: Session, run: StageRun, step: Step, group: list[Rollout], replaces: Replaces) -> Call:
    data = handed(session, run.round, step, group, said_before(session, run.round, step))
    return call_of(session, run, step, data, replaces=replaces)


def _rest_on(session: Session, round: int, step: Step) -> list[str]:
    """Committed stages after this one that made something of its verdicts."""
    labels = [s.label for s in session.recipe.round]
    after = session.recipe.round[labels.index(stage_of(step.label)) + 1 :]
    kinds = DEPENDENT[step.split]
    return [
        s.label
        for s in after
        if s.kind in kinds
        and (s.split == step.split or s.kind in {"gate", "control"})
        and session.committed(round, s.label)
    ]
