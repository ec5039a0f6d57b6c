"""Trains the same job again and again, killed at another moment each time, and prints the hash of what came out.

Run by `test_trainer_resume.py` in a process of its own: `python trainer_crash.py FOLDER`. Every training is a fork, so
that torch is imported once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trainer_tiny

from strop.core.trainer import checkpoint
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train

SFT = {"objective": "sft", "kind": trainer_tiny.sft_rows, "lora": None}
DPO = {"objective": "dpo", "kind": trainer_tiny.pair_rows, "lora": {"r": 2, "dropout": 0.3}}
PPO = {"objective": "ppo", "kind": trainer_tiny.group_rows, "lora": None}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], None]) -> int:
    """How the child that did `work` ended: 0, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after_step(n: int) -> Callable[[dict[str, float]], None]:
    return lambda report: die() if report["step"] == n else None


def kill_while_saving() -> None:
    """The second checkpoint is half written."""
    save, calls = torch.save, []

    def half(state: Any, out: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            out.write(b"half a checkpoint")
            out.flush()
            die()
        save(state, out)

    torch.save = half


def kill_before_the_rename() -> None:
    checkpoint.write_result = lambda job, result: die()


def kill_after_the_rename() -> None:
    rename = Path.rename

    def renamed(self: Path, target: Path) -> None:
        rename(self, target)
        die()

    Path.rename = renamed  # type: ignore[method-assign, assignment]


def content(directory: Path) -> str:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    base = trainer_tiny.make_policy(folder / "base")
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    kills: dict[str, tuple[Callable[[], None], int]] = {
        "never": (nothing, 0),
        "step 1": (nothing, 1),
        "step 3": (nothing, 3),
        "step 6": (nothing, 6),
        "last step": (nothing, 8),
        "while saving": (kill_while_saving, 0),
        "before the rename": (kill_before_the_rename, 0),
        "after the rename": (kill_after_the_rename, 0),
    }
    found: dict[str, dict[str, Any]] = {}
    for case in (SFT, DPO, PPO):
        name = str(case["objective"])
        examples = write_examples(folder / f"{name}.parquet", case["kind"](24))  # type: ignore[operator]
        for kill, (prepare, step) in kills.items():
            if case is PPO and kill not in ("never", "step 3", "before the rename"):
                continue
            where = folder / name / kill
            job = TrainJob(
                init=base,
                reference=base,
                examples=examples,
                output=where / "policy",
                work=where / "work",
                objective=name,
                train={
                    "lr": 1e-2,
                    "epochs": 2,
                    "batch_tokens": 45 if name == "sft" else 75,
                    "save_every_steps": 2,
                    "lora": case["lora"],
                },
                seed=5,
            )

            def killed(job: TrainJob = job, prepare: Callable[[], None] = prepare, step: int = step) -> None:
                prepare()
                train(job, kill_after_step(step))

            ended = forked(killed)
            left = job.output.exists()

            def again(job: TrainJob = job, where: Path = where) -> None:
                steps: list[float] = []
                result = train(job, lambda report: steps.append(report["step"]))
                (where / "report.json").write_text(json.dumps([steps, result.steps, result.metrics]))

            if (code := forked(again)) != 0:
                raise SystemExit(f"{name}, {kill}: the second call ended with {code}")
            again_steps, total, metrics = json.loads((where / "report.json").read_text())
            found[f"{name}: {kill}"] = {
                "ended": ended,
                "output_after_kill": left,
                "steps_again": again_steps,
                "steps": total,
                "metrics": metrics,
                "content": content(job.output),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
