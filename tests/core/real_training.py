"""The tiny loop with a real policy, a real engine and a real trainer, all in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import tiny_run
import trainer_tiny

from strop.core import training
from strop.core.trainer.job import TrainJob, TrainResult, read_examples
from strop.core.trainer.train import train

SAMPLED: tuple[dict[str, Any], ...] = (
    {"select": {"use": "uniform", "problems": 6}},
    {"generate": {"use": "sample", "n": 4, "max_tokens": 8}},
    {"verify": "./mine.py:length"},
)
PLUGINS = """
from strop.storage.tables import Score


@stage("verify")
def length(config: Nothing, *, rollouts):
    return [Score(subject_id=r.rollout_id, verdict="fail", value=float(len(r.completion))) for r in rollouts]
"""


@dataclass(frozen=True)
class Training:
    examples: pa.Table
    kept: pa.Table | None
    result: TrainResult


def loop(folder: Path, monkeypatch: Any, *stages: dict[str, Any], **top: Any) -> list[Training]:
    """Run rounds of sampling and these stages; their trainings."""
    done: list[Training] = []

    def trained(session: Any, job: TrainJob, at: int, step: Any) -> TrainResult:
        examples, kept = (None if path is None else read_examples(path) for path in (job.examples, job.kept))
        done.append(Training(examples, kept, train(job)))
        return done[-1].result

    tiny_run.inline(monkeypatch)
    monkeypatch.setattr(training, "_in_own_process", trained)
    base = {"use": "huggingface", "model": str(trainer_tiny.make_policy(folder / "policy", seed=3))}
    recipe = tiny_run.write(folder, [*SAMPLED, *stages], PLUGINS, base=base, engine="hf", **{"rounds": 1, **top})
    tiny_run.run(recipe, folder)
    return done
