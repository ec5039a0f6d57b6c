"""A loop in this process: the scripted engine, workers that work inline, and a trainer that trains nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from strop.core import prepare, round, running, training
from strop.core.jobs import Done, Job, Jobs
from strop.core.recipe import Recipe, load
from strop.core.round import run_loop
from strop.core.trainer.job import TrainJob, TrainResult
from strop.storage.errors import StropError

PLUGINS = '''
"""What the tests' loops are made of."""
from pathlib import Path

from strop.core.plugin import Config, Task, Verdict, stage
from strop.storage.tables import Problem


class Nothing(Config):
    """Nothing to set."""


class Ones(Config):
    """Problems whose answer is 1."""

    start: int = 0
    train: int = 12
    heldout: int = 4


@stage("base")
def start(config: Nothing, *, directory: Path):
    (directory / "config.json").write_text("{}")
    return directory


@stage("task")
def ones(config: Ones, *, seed):
    numbers = range(config.start, config.start + config.train + config.heldout)
    first_heldout = config.start + config.train
    return Task(
        lambda: [
            Problem(prompt=f"{i}=", reference="1", split="train" if i < first_heldout else "heldout") for i in numbers
        ]
    )


class Say(Config):
    """What the gate says in each round; the last word again when there is none left."""

    actions: list[str] = ["keep"]


@stage("gate")
def say(config: Say, *, round):
    return Verdict(config.actions[min(round, len(config.actions)) - 1], "because")
'''
ROUND: tuple[dict[str, Any], ...] = (
    {"select": {"use": "uniform", "problems": 6}},
    {"generate": {"use": "sample", "n": 4, "max_tokens": 4}},
    {"verify": "answer"},
    {"filter": "correct"},
    {"build": "rft"},
    {"train": {"objective": "sft", "init_from": "previous"}},
    {"evaluate": {"use": "pass_at_k", "k": [1]}},
    {"gate": {"use": "./mine.py:say", "actions": ["promote", "keep"]}},
)


class Inline:
    """In place of `Workers`: the same calls, made here."""

    def __init__(self, count: int, log_dir: Path, *, threads: int = 1, preload: Any = ()) -> None:
        self.count, self.threads = count, threads

    def run(self, job: Any, arguments: Any, on_report: Any = None, names: Any = ()) -> Any:
        for i, argument in enumerate(arguments):
            yield i, job(argument, lambda value, i=i: on_report(i, value) if on_report else None)

    def release(self) -> None:
        """Nothing to end."""


class InlineJobs(Jobs):
    """In place of `Jobs`: one after the other in this process, in the order that `which` picks from how many wait."""

    which = staticmethod(lambda waiting: 0)

    def __init__(self) -> None:
        self.waiting: list[Job] = []

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    def drop(self) -> list[Job]:
        dropped, self.waiting = self.waiting, []
        return dropped

    def next(self) -> Done:
        job = self.waiting.pop(self.which(len(self.waiting)))
        try:
            return Done(job, job.work(job.argument(), job.on_report or (lambda value: None)))
        except StropError as error:
            return Done(job, error=error)

    def abandon(self) -> None:
        self.waiting = []


def write(folder: Path, stages: Any = ROUND, plugins: str = "", **top: Any) -> Recipe:
    """A recipe of these stages, with further plugins in the same local file."""
    folder.mkdir(exist_ok=True, parents=True)
    name = f"mine_{next(_COUNT)}.py"  # a module is loaded once a process
    (folder / name).write_text(PLUGINS + plugins)
    recipe = {
        "name": "tiny",
        "rounds": 2,
        "workers": 2,
        "shard_rollouts": 16,
        "base": "./mine.py:start",
        "tasks": ["./mine.py:ones"],
        "engine": {"use": "scripted", "rules": [{"match": "", "replies": ["1", "2"]}]},
        "heldout": {"n": 4, "max_tokens": 4},
        "round": list(stages),
        **top,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe).replace("./mine.py:", f"./{name}:"))
    return load(str(path))


_COUNT = itertools.count()


def stages(**changes: Any) -> list[dict[str, Any]]:
    """`ROUND` with the entries of some kinds replaced; None leaves the kind out."""
    changed = [{kind: changes.get(kind, value) for kind, value in item.items()} for item in ROUND]
    return [item for item in changed if None not in item.values()]


def inline(monkeypatch: Any) -> None:
    """No process but this one."""
    for module in (round, prepare):
        monkeypatch.setattr(module, "Workers", Inline)
    monkeypatch.setattr(running, "Jobs", InlineJobs)
    monkeypatch.setattr(training, "_in_own_process", _trained)


def _trained(session: Any, job: TrainJob, at: int, step: Any) -> TrainResult:
    job.output.mkdir(parents=True, exist_ok=True)
    (job.output / "config.json").write_text(f'{{"after": "{job.init.name}", "round": {at}}}')
    return TrainResult(
        output=job.output,
        kind="full",
        steps=1,
        examples=1,
        tokens=1,
        loss=0.5,
        seconds=0.0,
        metrics=[{"step": 1, "loss": 0.5}],
    )


def run(recipe: Recipe, folder: Path, **more: Any) -> Any:
    """The loop in the lake of that folder."""
    return run_loop(recipe, lake=folder / "lake", **{"run_id": "tiny", **more})
