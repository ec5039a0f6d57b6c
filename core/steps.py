"""What each kind of stage is handed: the rows it reads, by shard, as calls ready to run here or in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from strop.core.events import StepResult
from strop.core.execute import Call, EngineRef, ref
from strop.core.named_policy import named_policy
from strop.core.pass_rates import pass_rates
from strop.core.problems import content_key
from strop.core.recipe import Step
from strop.core.seeds import derive
from strop.core.session import Session
from strop.core.subjects import Given
from strop.core.visible import made_by, places, stage_of
from strop.storage.tables import Context, Decision, Metric, Plan, Policy, Problem, Rollout, Score, StageRun

WIDE = ("token_ids", "logps")
"""Rollout columns left out of what a plugin sees unless its mark says that it needs them."""

Make = Callable[[StageRun], Call]


def plugin_step(session: Session, round: int, step: Step) -> StepResult:
    """Run one plugin stage of a round, whatever is not committed yet."""
    if session.committed(round, step.label):
        return session.skipped(step, round)
    if step.split == "heldout" and session.untrained(round):
        return session.nothing(round, step)  # the champion was examined in the round that made it
    shards, total = SHARDS.get(step.kind, _whole)(session, round, step)
    samples = step.kind == "generate" or "engine" in step.plugin.mark.handles
    upstream = session.upstream(round, step, session.policy_of(round, step) if samples else None)
    calls = []
    for index, data in enumerate(shards):
        run = session.stage_run(round, step, index, len(shards), upstream)
        calls.append((run, partial(_call, session, run, step, data)))
    return session.run_calls(round, step, calls, total)


def _call(session: Session, run: StageRun, step: Step, data: Callable[[], dict[str, Any]]) -> Call:
    return call_of(session, run, step, data())


def call_of(session: Session, run: StageRun, step: Step, data: Mapping[str, Any], **stamped: Any) -> Call:
    """A shard as a call; `stamped` goes into the stamp of its rows."""
    policy, folder = _policy(session, run.round, step, data), session.recipe.folder
    handles = {
        **data,
        "seed": run.seed,
        "round": run.round,
        "split": step.split,
        "history": session.read(Metric, "round < ?", [run.round]) if "history" in step.plugin.mark.handles else [],
    }
    if "policy" in step.plugin.mark.handles:
        handles["policy"] = named_policy(session, step, handles["rollouts"])
    if "state" in step.plugin.mark.handles:
        handles["state"] = session.state_of(step, run.round)
    return Call(
        ref(step, folder),
        session.stamp(run, step, policy_id=policy.policy_id, given=_given(session, step, handles), **stamped),
        handles,
        session.out(run),
        EngineRef(ref(session.recipe.engine, folder), session.directory(policy), session.workers.threads),
        tuple(ref(task, folder) for task in session.recipe.tasks),
        task_seed(session),
        tuple(ref(s, folder) for s in session.recipe.round if s.kind == "verify" and s.split == "train"),
        _sampling_purpose(session, run, step),
    )


def _policy(session: Session, round: int, step: Step, data: Mapping[str, Any]) -> Policy:
    """A verifier with an engine is given the policy that wrote the rollouts, which in a rerun may be another run's."""
    if step.kind == "verify" and data["rollouts"] and "engine" in step.plugin.mark.handles:
        return session.policy(data["rollouts"][0].policy_id)
    return session.policy_of(round, step)


def _given(session: Session, step: Step, handles: Mapping[str, Any]) -> Given:
    """What the plugin's rows may speak of."""
    problems: Iterable[Problem] | None = handles.get("problems")
    if isinstance(problems, Mapping):
        problems = problems.values()
    rollouts: Iterable[Rollout] | None = handles.get("rollouts")
    pool = session.read(Problem, "true") if step.kind == "synthesize" else []
    return Given(
        None if problems is None else {p.problem_id: p.task for p in problems},
        None if rollouts is None else {r.rollout_id: r.problem_id for r in rollouts},
        tuple(task.name for task in session.recipe.tasks),
        frozenset(map(content_key, pool)),
    )


def _sampling_purpose(session: Session, run: StageRun, step: Step) -> tuple[object, ...]:
    """Held-out seeds are the same in every round; two generators of one round must not sample the same twice."""
    if step.split == "heldout":
        return (session.seed, "heldout")
    own = () if step.label == step.kind else (step.label,)
    return (session.seed, "sample", run.round, *own)


def task_seed(session: Session) -> int:
    """Seed of the run's tasks, the same in every round."""
    return derive(session.seed, "task")


Shards = tuple[list[Callable[[], dict[str, Any]]], int]


def _whole(session: Session, round: int, step: Step) -> Shards:
    return [partial(round_data, session, round, step)], 0


def _generate(session: Session, round: int, step: Step) -> Shards:
    plan = _plan(session, round, step)
    default = getattr(step.config, "n", 1)
    wanted = [default if row.n is None else row.n for row in plan]
    total = sum(wanted)
    count = max(1, -(-total // session.recipe.shard_rollouts))
    groups: list[list[Plan]] = [[] for _ in range(count)]
    before = 0
    for row, n in zip(plan, wanted, strict=True):  # even shards, whole groups, by the rollouts before a row
        groups[min(count - 1, before * count // max(1, total))].append(row)
        before += n
    return [partial(_plan_data, session, step, group) for group in groups], total


def _plan(session: Session, round: int, step: Step) -> list[Plan]:
    if step.split == "heldout":
        return [Plan(problem_id=p.problem_id) for p in sorted(examination(session), key=lambda p: p.problem_key)]
    return session.read(Plan, "round = ?", [round])


def examination(session: Session) -> list[Problem]:
    """The held-out problems policies are examined on: of the recipe's tasks, not what re-used rollouts bring along."""
    labels = {f"task.{task.name}" for task in session.recipe.tasks}
    own = {made_by(run) for run in session.shards(0, labels)}
    return [p for p in session.read(Problem, "split = 'heldout'") if p.stage_run_id in own]


def _plan_data(session: Session, step: Step, plan: list[Plan]) -> dict[str, Any]:
    wanted = {row.problem_id for row in plan}
    contexts = {row.context_id for row in plan if row.context_id is not None}
    by_id = "context_id IN (SELECT unnest(?::BIGINT[]))"  # a re-used plan may name one of another run
    return {
        "plan": plan,
        "problems": {p.problem_id: p for p in _problems(session, step.split) if p.problem_id in wanted},
        "contexts": {c.context_id: c for c in session.lake.rows(Context, by_id, [sorted(contexts)])}
        if contexts
        else {},
    }


def _verify(session: Session, round: int, step: Step) -> Shards:
    rollouts = rollouts_of(session, round, step)
    return [partial(verify_data, session, round, step, g) for g in verify_groups(session, rollouts)], len(rollouts)


def verify_groups(session: Session, rollouts: list[Rollout]) -> list[list[Rollout]]:
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


def verify_data(session: Session, round: int, step: Step, rollouts: list[Rollout]) -> dict[str, Any]:
    """What a verify stage is handed for these rollouts."""
    wanted = {row.problem_id for row in rollouts}
    ids = {row.rollout_id for row in rollouts}
    found: dict[str, Any] = {
        "rollouts": rollouts,
        "problems": {p.problem_id: p for p in _problems(session, step.split) if p.problem_id in wanted},
    }
    if "scores" in step.plugin.mark.handles:
        found["scores"] = [s for s in _scores(session, round, step) if s.subject_id in ids]
    return found


def round_data(session: Session, round: int, step: Step) -> dict[str, Any]:
    """Handles of the stages that see a whole round; only those the plugin names are read."""
    wanted = set(step.plugin.mark.handles)
    found: dict[str, Any] = {}
    if "rollouts" in wanted:
        found["rollouts"] = rollouts_of(session, round, step)
    if "scores" in wanted:
        found["scores"] = _scores(session, round, step)
    if "decisions" in wanted:
        found["decisions"] = session.read(Decision, "round = ? AND subject_kind = 'rollout'", [round])
    if "problems" in wanted:
        problems = _problems(session, step.split, before=round)
        by_list = step.kind in {"select", "synthesize"}
        found["problems"] = problems if by_list else {p.problem_id: p for p in problems}
    if "pass_rates" in wanted:
        found["pass_rates"] = pass_rates(session, until=round)
    if "heldout_keys" in wanted:
        found["heldout_keys"] = frozenset(p.problem_key for p in session.read(Problem, "split = 'heldout'"))
    if "contexts" in wanted:
        found["contexts"] = library(session)
    if "metrics" in wanted:
        found["metrics"] = session.read(Metric, "round <= ?", [round])
    return found


def library(session: Session) -> list[Context]:
    """The contexts as they stand: the newest version of each, the deleted ones left out."""
    versions = session.read(Context, "true")
    replaced = {context.parent_context_id for context in versions}
    return [c for c in versions if c.context_id not in replaced and c.op != "delete"]


def _problems(session: Session, split: str, before: int | None = None) -> list[Problem]:
    found = session.read(Problem, "split = ? AND status = 'active'", [split])
    return found if before is None else [p for p in found if p.round < before or p.round == 0]


def rollouts_of(session: Session, round: int, step: Step) -> list[Rollout]:
    """The rollouts a stage of the round looks at: in training, or of the policy that is examined."""
    without = [column for column in WIDE if column not in step.plugin.mark.needs]
    where, params = "round = ? AND split = ?", [round, step.split]
    if step.split == "heldout":
        where, params = f"{where} AND policy_id = ?", [*params, session.candidate(round).policy_id]
    return session.read(Rollout, where, params, without)


def _scores(session: Session, round: int, step: Step) -> list[Score]:
    """What was said of the split's rollouts; for a verify stage, by the stages before it."""
    steps = (*session.recipe.round, *session.recipe.examine)
    before = steps[: next((i for i, s in enumerate(steps) if s.label == stage_of(step.label)), None)]
    labels = {s.label for s in before if s.kind in {"verify", "generate"} and s.split == step.split}
    runs = {made_by(run) for run in session.shards(round, labels)}
    return [s for s in session.read(Score, "round = ?", [round]) if s.stage_run_id in runs]


SHARDS: dict[str, Callable[[Session, int, Step], Shards]] = {"generate": _generate, "verify": _verify}
