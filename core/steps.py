"""What each kind of stage is handed: the rows it reads, by shard, as calls ready to run here or in a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from strop.core.events import StepResult
from strop.core.execute import Call, EngineRef, PluginRef
from strop.core.pass_rates import pass_rates
from strop.core.recipe import Step
from strop.core.session import Session
from strop.storage.tables import Context, Decision, Metric, Plan, Policy, Problem, Rollout, Score, StageRun

WIDE = ("token_ids", "logps")
"""Rollout columns left out of what a plugin sees unless its mark says that it needs them."""

Make = Callable[[StageRun], Call]


def plugin_step(session: Session, round: int, step: Step) -> StepResult:
    """Run one plugin stage of a round, whatever is not committed yet."""
    if session.committed(round, step.label):
        return session.run_calls(round, step, [])
    shards, total = SHARDS.get(step.kind, _whole)(session, round, step)
    upstream = session.upstream(round, step)
    calls = []
    for index, data in enumerate(shards):
        run = session.stage_run(round, step, index, len(shards), upstream)
        calls.append((run, partial(_call, session, run, step, data)))
    return session.run_calls(round, step, calls, total)


def ref(step: Step, session: Session) -> PluginRef:
    """The step's plugin in a form that travels."""
    use = step.plugin.name
    if ":" in step.plugin.origin or step.plugin.origin.endswith(".py"):
        use = f"{step.plugin.origin}:{step.plugin.name}"
    stage = "objective" if step.kind == "train" else step.kind
    return PluginRef(stage, use, session.recipe.folder, step.config.model_dump(mode="json"), step.name)


def _call(session: Session, run: StageRun, step: Step, data: Callable[[], dict[str, Any]]) -> Call:
    policy = _policy(session, run.round, step)
    handles = {
        **data(),
        "seed": run.seed,
        "round": run.round,
        "split": step.split,
        "history": session.read(Metric, "round < ?", [run.round]) if "history" in step.plugin.mark.handles else [],
    }
    if "state" in step.plugin.mark.handles:
        handles["state"] = session.state_of(step, run.round)
    rollouts: Sequence[Rollout] = handles.get("rollouts", ())
    return Call(
        ref(step, session),
        session.stamp(
            run,
            step,
            policy_id=policy.policy_id,
            problem_of={r.rollout_id: r.problem_id for r in rollouts} if step.kind == "verify" else {},
        ),
        handles,
        session.out(run),
        EngineRef(
            ref(session.recipe.engine, session),
            session.directory(policy),
            max(1, session.cores // session.workers.count),
        ),
        tuple(ref(task, session) for task in session.recipe.tasks),
        task_seed(session),
        tuple(ref(s, session) for s in session.recipe.round if s.kind == "verify" and s.split == "train"),
        (session.seed, "heldout") if step.split == "heldout" else (session.seed, "sample", run.round),
    )


def task_seed(session: Session) -> int:
    """Seed of the run's tasks, the same in every round."""
    from strop.core.seeds import derive

    return derive(session.seed, "task")


def _policy(session: Session, round: int, step: Step) -> Policy:
    """Held-out work looks at the round's candidate, everything else at the champion."""
    return session.candidate(round) if step.split == "heldout" else session.champion()


Shards = tuple[list[Callable[[], dict[str, Any]]], int]


def _whole(session: Session, round: int, step: Step) -> Shards:
    return [partial(round_data, session, round, step)], 0


def _generate(session: Session, round: int, step: Step) -> Shards:
    plan = _plan(session, round, step)
    default = getattr(step.config, "n", 1)
    total = sum(row.n or default for row in plan)
    count = max(1, -(-total // session.recipe.shard_rollouts))
    groups: list[list[Plan]] = [[] for _ in range(count)]
    before = 0
    for row in plan:  # even shards, whole groups: the shard of a plan row follows from the rollouts before it
        groups[min(count - 1, before * count // total)].append(row)
        before += row.n or default
    return [partial(_plan_data, session, step, group) for group in groups], total


def _plan(session: Session, round: int, step: Step) -> list[Plan]:
    if step.split == "heldout":
        heldout = session.read(Problem, "split = 'heldout'")
        return [Plan(problem_id=p.problem_id) for p in sorted(heldout, key=lambda p: p.problem_key)]
    return session.read(Plan, "round = ?", [round])


def _plan_data(session: Session, step: Step, plan: list[Plan]) -> dict[str, Any]:
    wanted = {row.problem_id for row in plan}
    contexts = {row.context_id for row in plan if row.context_id is not None}
    return {
        "plan": plan,
        "problems": {p.problem_id: p for p in _problems(session, step.split) if p.problem_id in wanted},
        "contexts": {c.context_id: c for c in session.read(Context, "true") if c.context_id in contexts},
    }


def _verify(session: Session, round: int, step: Step) -> Shards:
    """Shards of rollouts: as many of the generator's shards together as make up eight times its size."""
    rollouts = _rollouts(session, round, step)
    by_run: dict[int, list[Rollout]] = {}
    for row in rollouts:
        by_run.setdefault(row.stage_run_id, []).append(row)
    order = {
        run.stage_run_id: (label, run.shard)
        for (at, label), found in session.ledger.items()
        if at == round
        for run in found.values()
    }
    groups: list[list[Rollout]] = [[]]
    for _, members in sorted(by_run.items(), key=lambda item: order[item[0]]):
        if len(groups[-1]) >= 8 * session.recipe.shard_rollouts:
            groups.append([])
        groups[-1].extend(members)
    return [partial(_verify_data, session, step, group) for group in groups], len(rollouts)


def _verify_data(session: Session, step: Step, rollouts: list[Rollout]) -> dict[str, Any]:
    wanted = {row.problem_id for row in rollouts}
    ids = {row.rollout_id for row in rollouts}
    found: dict[str, Any] = {
        "rollouts": rollouts,
        "problems": {p.problem_id: p for p in _problems(session, step.split) if p.problem_id in wanted},
    }
    if "scores" in step.plugin.mark.handles:
        found["scores"] = [s for s in session.read(Score, "round = ?", [rollouts[0].round]) if s.subject_id in ids]
    return found


def round_data(session: Session, round: int, step: Step) -> dict[str, Any]:
    """Handles of the stages that see a whole round; only those the plugin names are read."""
    wanted = set(step.plugin.mark.handles)
    found: dict[str, Any] = {}
    if "rollouts" in wanted:
        found["rollouts"] = _rollouts(session, round, step)
    if "scores" in wanted:
        found["scores"] = _scores(session, round, step)
    if "decisions" in wanted:
        found["decisions"] = session.read(Decision, "round = ? AND subject_kind = 'rollout'", [round])
    if "problems" in wanted:
        problems = _problems(session, step.split, before=round)
        by_list = step.kind in {"select", "synthesize"}
        found["problems"] = problems if by_list else {p.problem_id: p for p in problems}
    if "pass_rates" in wanted:
        found["pass_rates"] = pass_rates(session.lake, session.run_id, until=round)
    if "heldout_keys" in wanted:
        found["heldout_keys"] = frozenset(p.problem_key for p in session.read(Problem, "split = 'heldout'"))
    if "contexts" in wanted:
        found["contexts"] = session.read(Context, "true")
    if "metrics" in wanted:
        found["metrics"] = session.read(Metric, "round <= ?", [round])
    return found


def _problems(session: Session, split: str, before: int | None = None) -> list[Problem]:
    found = session.read(Problem, "split = ? AND status = 'active'", [split])
    return found if before is None else [p for p in found if p.round < before or p.round == 0]


def _rollouts(session: Session, round: int, step: Step) -> list[Rollout]:
    without = [column for column in WIDE if column not in step.plugin.mark.needs]
    where, params = "round = ? AND split = ?", [round, step.split]
    if step.split == "heldout":
        where, params = f"{where} AND policy_id = ?", [*params, session.candidate(round).policy_id]
    return session.read(Rollout, where, params, without)


def _scores(session: Session, round: int, step: Step) -> list[Score]:
    labels = {s.label for s in session.recipe.round if s.kind in {"verify", "generate"} and s.split == step.split}
    runs = {run.stage_run_id for label in labels for run in session.ledger.get((round, label), {}).values()}
    return [s for s in session.read(Score, "round = ?", [round]) if s.stage_run_id in runs]


SHARDS: dict[str, Callable[[Session, int, Step], Shards]] = {"generate": _generate, "verify": _verify}
