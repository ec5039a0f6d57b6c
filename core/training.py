"""The stages that train: examples of the rounds in the window, a trainer process, and the policy that comes out."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.core.events import Event, StepResult
from strop.core.gating import policy_called
from strop.core.keeping import kept_sample
from strop.core.recipe import Step, canonical_json
from strop.core.reward_models import TokenScores, token_scores
from strop.core.session import Session
from strop.core.token_scoring import scored_by
from strop.core.trainer.config import Train, TrainReward
from strop.core.trainer.job import TokenScorer, TrainJob, TrainResult, write_examples
from strop.core.trainer.trl_config import Trl
from strop.core.training_examples import Sides, examples_of, shared
from strop.core.workers import Workers
from strop.storage.checkpoints import adopt
from strop.storage.errors import StageError
from strop.storage.tables import REWARD, Policy, PolicyExample, Row, StageRun, TrainMetric

if TYPE_CHECKING:
    import pyarrow as pa


def train_step(session: Session, round: int, step: Step) -> StepResult:
    """Train this round's candidate or a reward model, unless it is there. A killed training goes on from its own last
    checkpoint.

    Without an example there is none, nor while the reward model that is to score its tokens has not been trained: a
    filter that kept nothing is a result, and the next round goes on.
    """
    if session.committed(round, step.label):
        return session.skipped(step, round)
    started = time.perf_counter()
    config = step.config
    assert isinstance(config, Train | Trl)
    init = _start(session, step, config)
    reference = None
    if _refers(step):
        reference = init if config.reference == "init" else policy_called(session, config.reference)
    scores = token_scores(session, round, step)
    upstream = set(session.upstream(round, step, init)) | (set() if scores is None else session.keys_of(scores.model))
    run = session.stage_run(round, step, upstream=sorted(upstream))
    session.emit(Event("stage_start", session.run_id, round, step.label))
    work = session.lake.root / "work" / run.key
    first = 1 if config.data_window == "all" else max(1, round - config.data_window + 1)
    frozen = {} if isinstance(config, Trl) else _frozen(reference, scores)
    sides = Sides(session, frozen, (first, round)) if frozen else None
    table = examples_of(session, (first, round), sides, config.replay, run.seed, kind=_kind(session, step))
    if isinstance(config, TrainReward) and config.share < 1:
        table = shared(table, config.share, run.seed)
    unscored = scores is None and scored_by(step, session.recipe.round) is not None
    if not table.num_rows or unscored:
        session.commit(run, counts={}, seconds=time.perf_counter() - started)
        return session.finished(step, round, started)
    kept = None
    if isinstance(config, Train) and config.ewc is not None:
        kept = kept_sample(session, config.ewc, round, table, run.seed)
    session.workers.release()  # and their engines: training finds the memory free
    session.verifiers.release()
    try:
        job = _job(session, run, step, config, init, reference, scores, table, kept, work)
        result = _in_own_process(session, job, round, step)
    except StageError as error:
        raise StageError(f"round {round}, {step.label}: {error}") from error
    policy = _policy(session, run, step, result, init, reference, scores)
    held_back = set(result.held_back)
    links = [
        PolicyExample(
            run_id=session.run_id, round=round, stage_run_id=run.stage_run_id, policy_id=policy.policy_id, example_id=id
        )
        for id in table.column("example_id").to_pylist()
        if id not in held_back
    ]
    steps = _steps(session, run, policy, result)
    count, files = (0, {}) if sides is None else sides.computed(session, run, work / "checkpoints")
    status = {session.champion().policy_id: "retired"} if policy.status == "champion" else {}
    session.commit(
        run,
        counts={
            "policies": 1,
            "policy_examples": len(links),
            "train_metrics": len(steps),
            **({"token_logps": count} if count else {}),
        },
        seconds=time.perf_counter() - started,
        tokens=result.tokens,
        files=files,
        rows={"policies": [policy], "policy_examples": list(links), "train_metrics": steps},
        policy_status=status,
    )
    shutil.rmtree(work, ignore_errors=True)
    return session.finished(step, round, started)


def _start(session: Session, step: Step, config: Train | Trl) -> Policy:
    """What training starts from. For a reward model `previous` is the stage's own last one."""
    if step.kind == "train_reward" and config.init_from == "previous":
        mine = [model for model in session.reward_models() if model.name.rpartition("/")[2] == step.name]
        return mine[-1] if mine else policy_called(session, "base")
    return policy_called(session, config.init_from)


def _refers(step: Step) -> bool:
    """Whether the objective reads a reference, or what comes out is a reward by its log-ratio to one."""
    implicit = step.kind == "train_reward" and step.plugin.mark.head is None
    return implicit or "reference" in step.plugin.mark.required(step.objective)


def _kind(session: Session, step: Step) -> str | None:
    """The kind of example the stage takes; None = all there are, where it is the only one that trains."""
    return step.plugin.mark.examples if any(s.kind == "train_reward" for s in session.recipe.round) else None


def _job(
    session: Session,
    run: StageRun,
    step: Step,
    config: Train | Trl,
    init: Policy,
    reference: Policy | None,
    scores: TokenScores | None,
    examples: pa.Table,
    kept: pa.Table | None,
    work: Path,
) -> TrainJob:
    return TrainJob(
        init=session.directory(init),
        reference=session.directory(reference) if reference else None,
        scorer=None if scores is None else _scorer(session, scores),
        examples=write_examples(work / "examples.parquet", examples),
        kept=None if kept is None else write_examples(work / "kept.parquet", kept),
        output=work / "policy",
        work=work / "checkpoints",
        objective=_objective(step),
        objective_origin=step.plugin.origin,
        objective_config=step.objective.model_dump(mode="json") if step.objective else {},
        train=config.model_dump(mode="json", exclude={"share", *config.operation()}),
        track=config.track if isinstance(config, Train) else (),
        title=_name(session, run, step),
        logs=session.lake.root / "logs" / session.run_id,
        seed=run.seed,
        threads=max(1, session.cores // _processes(config)),
    )


def _frozen(reference: Policy | None, scores: TokenScores | None) -> dict[str, Policy]:
    """The policies whose log-probabilities the training reads, by what they are to it."""
    found = {"reference": reference}
    if scores is not None and scores.reference is not None:
        found |= {"scorer": scores.model, "scorer_reference": scores.reference}
    return {name: policy for name, policy in found.items() if policy is not None}


def _scorer(session: Session, scores: TokenScores) -> TokenScorer:
    reference = None if scores.reference is None else session.directory(scores.reference)
    return TokenScorer(session.directory(scores.model), reference, scores.beta)


def _policy(
    session: Session,
    run: StageRun,
    step: Step,
    result: TrainResult,
    init: Policy,
    reference: Policy | None,
    scores: TokenScores | None,
) -> Policy:
    """Take the checkpoint into the lake; its row. Where no gate decides, the newest policy is the champion."""
    path, content_hash = adopt(session.lake.root, result.output)
    reward = step.kind == "train_reward"
    gated = any(s.kind == "gate" for s in session.recipe.round)
    detail: dict[str, Any] = {"metrics": result.metrics[-1:]}
    if reward:
        detail |= {"head": step.plugin.mark.head, "beta": getattr(step.objective, "beta", 1.0)}
    if scores is not None:
        detail |= {"reward_policy_id": scores.model.policy_id}
    return Policy(
        run_id=session.run_id,
        round=run.round,
        stage_run_id=run.stage_run_id,
        policy_id=run.stage_run_id << 20,
        name=_name(session, run, step),
        status="scorer" if reward else "candidate" if gated else "champion",
        kind=REWARD if reward else result.kind,
        parent_policy_id=init.policy_id,
        reference_policy_id=reference.policy_id if reference else None,
        path=str(path),
        content_hash=content_hash,
        objective=_objective(step),
        examples=result.examples,
        steps=result.steps,
        loss=result.loss,
        detail=canonical_json(detail),
    )


def _name(session: Session, run: StageRun, step: Step) -> str:
    return f"{session.run_id}/r{run.round}" + (f"/{step.name}" if step.kind == "train_reward" else "")


def _steps(session: Session, run: StageRun, policy: Policy, result: TrainResult) -> list[Row]:
    """Every number of every optimiser step."""
    return [
        TrainMetric(
            run_id=session.run_id,
            round=run.round,
            stage_run_id=run.stage_run_id,
            policy_id=policy.policy_id,
            step=int(values["step"]),
            name=name,
            value=value if math.isfinite(value) else None,
        )
        for values in result.metrics
        for name, value in values.items()
        if name != "step"
    ]


def _processes(config: Any) -> int:
    """TRL's trainers run in one."""
    return config.processes if isinstance(config, Train) else 1


def _objective(step: Step) -> str:
    """What trained a policy, by name."""
    return f"trl {step.config.trainer}" if isinstance(step.config, Trl) else step.plugin.name


def _in_own_process(session: Session, job: TrainJob, round: int, step: Step) -> TrainResult:
    """Fresh processes, so that the memory training took is free when generation starts again."""
    world = _processes(step.config)
    meeting = job.work / "meeting"
    job.work.mkdir(parents=True, exist_ok=True)
    meeting.unlink(missing_ok=True)

    def show(_: int, value: dict[str, Any]) -> None:
        session.emit(
            Event(
                "progress",
                session.run_id,
                round,
                step.label,
                int(value.get("step", 0)),
                int(value.get("steps", 0)),
                int(value.get("tokens", 0)),
                detail=value,
            )
        )

    logs = session.lake.root / "logs" / session.run_id / "train"
    trainer = Workers(world, logs, threads=max(1, session.cores // world))
    try:
        work = _train_with_trl if isinstance(step.config, Trl) else _train
        found = dict(trainer.run(work, [(job, rank, world, meeting) for rank in range(world)], show))
    finally:
        trainer.release()
    result: TrainResult = found[0]
    return result


def _train(part: tuple[TrainJob, int, int, Path], report: Callable[[Any], None]) -> TrainResult:
    from strop.core.trainer.policy import pick_device
    from strop.core.trainer.ranks import Ranks, joined
    from strop.core.trainer.train import train

    job, rank, world, meeting = part
    with joined(rank, world, meeting, pick_device()):
        return train(job, report, Ranks(rank, world))


def _train_with_trl(part: tuple[TrainJob, int, int, Path], report: Callable[[Any], None]) -> TrainResult:
    from strop.core.trainer.trl_train import train

    return train(part[0], report)


def checkpoint_path(session: Session, path: Path) -> str:
    """A checkpoint's path as the lake stores it: relative where it lies inside the lake."""
    root = session.lake.root.resolve()
    path = path.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
