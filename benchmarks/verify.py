"""What verifying while rollouts are still sampled saves, and what judging in processes of their own costs.

    python benchmarks/verify.py [--only waiting hf pool] [--quick] [--json]

- `waiting`: an engine that waits, as one behind a network or on a GPU does, and the verifier `math`: seconds from the
  first prompt to the last verdict, streamed over one stage after the other.
- `hf`: the same with the default recipe's engine and policy, which want every core themselves.
- `pool`: processor time a rollout with the verifier `answer`, of all processes together, and of calling its function
  directly.

Ratios are of one run on one machine, the two sides taking turns; the smallest of each side's times counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from strop.core import judges, round
from strop.core.execute import PluginRef, verify
from strop.core.recipe import RECIPES, load
from strop.core.registry import find
from strop.core.round import run_loop
from strop.storage.tables import Problem, Rollout

WAITING = '''
"""An engine that waits before it answers, sums to answer, and a policy of nothing."""
import time
from pathlib import Path

from strop.core.engine import Completion
from strop.core.plugin import Config, Task, stage
from strop.storage.tables import Problem

REFERENCE = r"\\frac{1}{2}"


class Nothing(Config):
    """Nothing to set."""


class Waiting(Config):
    """How long."""

    seconds: float


class Engine:
    name = "waiting"
    capabilities = frozenset({"sample"})

    def __init__(self, seconds):
        self.seconds = seconds

    def render(self, prompt, messages=None):
        return prompt

    def sample(self, requests, sampling, progress=None):
        time.sleep(self.seconds * sum(len(request.seeds) for request in requests))
        return [[self.one(seed) for seed in request.seeds] for request in requests]

    def one(self, seed):
        a, b = (2 + seed // 97**i % 97 for i in range(2))
        text = rf"\\boxed{{\\frac{{{a}}}{{{b}}}}}"
        return Completion(text=text, token_ids=[1], logps=[0.0], finish_reason="stop")

    def close(self):
        pass


@stage("engine")
def waiting(config: Waiting):
    return Engine(config.seconds)


@stage("base")
def nothing(config: Nothing, *, directory: Path):
    (directory / "config.json").write_text("{}")
    return directory


@stage("task")
def sums(config: Nothing, *, seed):
    return Task(lambda: [Problem(prompt=f"{i}", reference=REFERENCE) for i in range(4096)])
'''


def streamed(quick: bool, engine: str) -> dict[str, Any]:
    """Seconds of sampling and verifying, by turns one after the other and streamed."""
    times: dict[str, list[float]] = {"one_after_the_other_s": [], "streamed_s": []}
    plain = round.followers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = load(str(_recipe(folder, quick, engine)))
        for turn in range(2 if quick else 4):
            for how, found in times.items():
                round.followers = plain if how == "streamed_s" else lambda steps, step: []
                found.append(_seconds(recipe, folder / f"{how}{turn}"))
    round.followers = plain
    best = {how: min(found) for how, found in times.items()}
    return {**best, "streamed_over_one_after_the_other": best["streamed_s"] / best["one_after_the_other_s"]}


def _recipe(folder: Path, quick: bool, engine: str) -> Path:
    if engine == "waiting":
        (folder / "waiting.py").write_text(WAITING)
        top: dict[str, Any] = {
            "name": "waiting",
            "rounds": 1,
            "workers": 1,
            "shard_rollouts": 128,
            "base": "./waiting.py:nothing",
            "tasks": ["./waiting.py:sums"],
            "engine": {"use": "./waiting.py:waiting", "seconds": 0.006},
        }
        generate = {"use": "sample", "n": 8}
    else:
        default = yaml.safe_load((RECIPES / "default.yaml").read_text())
        top = {k: default[k] for k in ("base", "tasks", "engine")} | {"name": "hf", "rounds": 1, "shard_rollouts": 512}
        generate = {"use": "sample", "n": 8, "max_tokens": 96}
    problems = 128 if quick else 512
    stages = [{"select": {"use": "uniform", "problems": problems}}, {"generate": generate}, {"verify": "math"}]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**top, "round": stages}))
    return path


def _seconds(recipe: Any, lake: Path) -> float:
    at: dict[tuple[str, str], float] = {}
    run_loop(recipe, lake=lake, on_event=lambda e: at.setdefault((e.stage, e.kind), time.perf_counter()) and None)
    return at["verify", "stage_done"] - at["generate", "stage_start"]


def pool(quick: bool) -> dict[str, Any]:
    """Microseconds of processor time a rollout."""
    problems = {i: Problem(problem_id=i, prompt="12+34-5=", reference="41", task="sums") for i in range(128)}
    rollouts = [
        Rollout(
            rollout_id=i, problem_id=i // 8, sample_index=i % 8, prompt="12+34-5=", completion=f"12+34=46\n46-5={i}"
        )
        for i in range(1024)
    ]
    handles = {"rollouts": rollouts, "problems": problems, "scores": [], "seed": 0, "round": 1}
    plugin = find("verify", "answer")
    config = plugin.configure({})
    ref = PluginRef("verify", "answer", Path(), {}, "answer")
    verify(ref, handles, [], 0, judges=2)  # the server and its processes start
    direct, pooled = [], []
    for _ in range(5 if quick else 20):
        before = time.process_time()
        for rollout in rollouts:
            plugin.function(config, rollout=rollout, problem=problems[rollout.problem_id])
        direct.append(time.process_time() - before)
        before = _cpu()
        for _ in range(10):  # the kernel counts the other processes' time in hundredths of a second
            verify(ref, handles, [], 0, judges=2)
        pooled.append((_cpu() - before) / 10)
    each = {"direct_us": 1e6 * min(direct) / len(rollouts), "pool_us": 1e6 * min(pooled) / len(rollouts)}
    return {**each, "overhead_us": each["pool_us"] - each["direct_us"]}


def _cpu() -> float:
    there = psutil.Process(judges.server().process.pid)
    used = [process.cpu_times() for process in (there, *there.children())]
    return time.process_time() + sum(times.user + times.system for times in used)


PARTS = {"waiting": lambda quick: streamed(quick, "waiting"), "hf": lambda quick: streamed(quick, "hf"), "pool": pool}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--quick", action="store_true", help="small, in about a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    found = {name: PARTS[name](arguments.quick) for name in arguments.only}
    if arguments.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        for key, value in values.items():
            print(f"{name}: {key} {value:.3f}")


if __name__ == "__main__":
    main()
