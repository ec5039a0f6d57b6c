"""Shows a training's steps in TensorBoard, Weights & Biases or MLflow while it goes on, through accelerate's trackers.

The lake has the same numbers when the training is committed (`train_metrics`). A training that is killed and goes on
continues with its next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strop.core.trainer.job import TrainJob

Tracked = Callable[[Mapping[str, float]], None]
"""Takes a step's metrics, with `step`."""


@contextmanager
def tracked(job: TrainJob) -> Iterator[Tracked]:
    """Open what `job.track` names."""
    if not job.track:
        yield lambda _: None
        return
    from accelerate import PartialState

    PartialState()  # what accelerate's trackers ask whether they are the one process that logs
    trackers = [_open(name, job) for name in job.track]

    def log(values: Mapping[str, float]) -> None:
        numbers = {name: value for name, value in values.items() if name != "step"}
        for tracker in trackers:
            tracker.log(numbers, step=int(values["step"]))

    try:
        yield log
    finally:
        for tracker in trackers:
            tracker.finish()


def _open(name: str, job: TrainJob) -> Any:
    from accelerate import tracking

    run, _, part = job.title.rpartition("/")
    if name == "tensorboard":
        tracker: Any = tracking.TensorBoardTracker(part, job.logs / name)
    elif name == "wandb":
        tracker = tracking.WandBTracker("strop", name=job.title, group=run, dir=str(job.logs))
    else:
        tracker = tracking.MLflowTracker(experiment_name=run, run_name=part)
    tracker.start()
    return tracker
