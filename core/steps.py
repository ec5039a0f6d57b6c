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
from strop.core.reward_models import reward_models
from strop.core.running import Shard
from strop.core.seeds import derive
from strop.core.session import Session
from strop.core.subjects import Given
from strop.core.visible import made_by
from strop.storage.tables import Context, Decision, Metric, Plan, Policy, Problem, Rollout, Score, StageRun

WIDE = ("token_ids", "logps")
"""Rollout columns left out of what a plugin sees unless its mark says that it needs them."""


def plugin_step(session: Session, round: int, step: Step) -> StepResult:
    """Run one plugin stage of a round, whatever is not committed yet."""
    done = settled(session, round, step)
    return done if done is not None else session.running.run(round, step, *shards_of(session, round, step))


def settled(session: Session, round: int, step: Step) -> StepResult | None:
    """The result of a stage that is committed, or has nothing to do; None where there is work."""
    if session.committed(round, step.label):
        return session.running.result(round, step)
    if step.split == "heldout" and session.untrained(round):
        return session.nothing(round, step)  # the champion was examined in the round that made it
    return None


def shards_of(session: Session, round: int, step: Step) -> tuple[list[Shard], int]:
    """The shards of a stage that is no verify stage, and how many rollouts it will make; 0 = it makes none."""
    data, total = _generate(session, round, step) if step.kind == "generate" else _whole(session, round, step)
    samples = step.kind == "generate" or "engine" in step.plugin.mark.handles
    upstream = session.upstream(round, step, session.policy_of(round, step) if samples else None)
    runs = [session.stage_run(round, step, i, len(data), upstream) for i in range(len(data))]
    return [Shard(step, run, partial(_call, session, run, step, d)) for run, d in zip(runs, data, strict=True)], total


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
    if "reward_models" in step.plugin.mark.handles:
        handles["reward_models"] = reward_models(session, run.round, step, handles["rollouts"])
    if "state" in step.plugin.mark.handles:
        handles["state"] = session.state_of(step, run.round)
    return Call(
        ref(step, folder),
        session.stamp(run, step, policy_id=policy.policy_id, given=_given(session, step, handles), **stamped),
        handles,
        session.out(run),
        EngineRef(
            ref(session.recipe.engine, folder),
            session.directory(policy),
            session.workers.threads,
            session.lake.root.resolve() / "engines" / session.run_id,
            _needs(session),
        ),
        tuple(ref(task, folder) for task in session.recipe.tasks),
        task_seed(session),
        tuple(ref(s, folder) for s in session.recipe.round if s.kind == "verify" and s.split == "train"),
        _sampling_purpose(session, run, step),
        session.verifiers.count,
    )


def _needs(session: Session) -> frozenset[str]:
    return frozenset(WIDE) & frozenset().union(*(step.plugin.mark.needs for step in session.recipe.round))


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


Cut = tuple[list[Callable[[], dict[str, Any]]], int]
"""What each shard is handed, and how many rollouts they make together."""


def _whole(session: Session, round: int, step: Step) -> Cut:
    return [partial(round_data, session, round, step)], 0


def _generate(session: Session, round: int, step: Step) -> Cut:
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
        "problems": {p.problem_id: p for p in problems_of(session, step.split) if p.problem_id in wanted},
        "contexts": {c.context_id: c for c in session.lake.rows(Context, by_id, [sorted(contexts)])}
        if contexts
        else {},
    }


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
        problems = problems_of(session, step.split, before=round)
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


def problems_of(session: Session, split: str, before: int | None = None) -> list[Problem]:
    """The active problems of a split; those of earlier rounds alone, and of round 0, where `before` is one."""
    found = session.read(Problem, "split = ? AND status = 'active'", [split])
    return found if before is None else [p for p in found if p.round < before or p.round == 0]


def rollouts_of(session: Session, round: int, step: Step, of: StageRun | None = None) -> list[Rollout]:
    """The rollouts a stage of the round looks at: in training, or of the policy that is examined; of one shard only."""
    without = [column for column in WIDE if column not in step.plugin.mark.needs]
    where, params = "round = ? AND split = ?", [round, step.split]
    if step.split == "heldout":
        where, params = f"{where} AND policy_id = ?", [*params, session.candidate(round).policy_id]
    if of is not None:
        where, params = f"{where} AND stage_run_id = ?", [*params, made_by(of)]
    return session.read(Rollout, where, params, without, keep=of is None)


def _scores(session: Session, round: int, step: Step) -> list[Score]:
    """What was said of the split's rollouts."""
    labels = {s.label for s in session.recipe.round if s.kind in {"verify", "generate"} and s.split == step.split}
    runs = {made_by(run) for run in session.shards(round, labels)}
    return [s for s in session.read(Score, "round = ?", [round]) if s.stage_run_id in runs]
