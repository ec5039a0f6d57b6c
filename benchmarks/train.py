"""How fast the trainer is and how much memory it takes, against TRL's SFTTrainer and DPOTrainer in the same run.

    python benchmarks/train.py [--quick] [--json] [--sizes 0.6M 3M 30M] [--mixes sums "long tail" even]
                               [--memory | --no-memory]

Both sides train the same policy on the same examples for one epoch, with as many examples a step (about 1,024 target
tokens), on the same number of threads. TRL goes without gradient checkpointing and has the fastest of its settings for
the size and the lengths: float32 or bfloat16, examples of like length together or not, a step in one piece or in four
(`..._over_trl_plain`: in float32, with none of that). Strop has its defaults, in the faster of the two types. Sides
take turns and the best pass of each counts; loading, tokenising and saving count on both, imports on neither. The
ratios are of wall time; what else the machine does moves those of CPU seconds ("cpu") less.

0.6M is the default loop's policy, `sums` are its lengths. --quick takes these two alone unless others are named, and a
sixteenth of the examples: all sides, in about a minute. --memory: peak main memory of a fresh process above what it
holds with everything imported, with a vocabulary of 150,000 (--quick: of the first objective alone).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from train_sides import Pass, strop, trl
from train_subjects import EXAMPLES, MIXES, SHAPES, Data, data, policy
from transformers.utils import logging

BATCH_TOKENS = 1024
VOCABULARY = 150_000
CHOICES: dict[str, tuple[Any, ...]] = {
    "bf16": (False, True),
    "train_sampling_strategy": ("random", "group_by_length"),
    "parts": (1, 4),
}
"""Settings of TRL's that may be faster; each is tried at the best of those before it."""

Found = dict[str, dict[str, dict[str, Pass]]]
"""Size -> length mix -> side -> its best pass."""


def main() -> None:
    """Measure every size with every length mix, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer examples and passes, of 0.6M and sums")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES))
    parser.add_argument("--objectives", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--memory", action="store_true", help="memory only")
    part.add_argument("--no-memory", action="store_true", help="speed only")
    chosen = parser.parse_args()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    chosen.sizes = chosen.sizes or (["0.6M"] if chosen.quick else list(SHAPES))
    chosen.mixes = chosen.mixes or (["sums"] if chosen.quick else list(MIXES))
    told: dict[str, Any] = {"cpu": {}, "trl_settings": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for objective in chosen.objectives:
            if not chosen.memory:
                speed(folder / objective, objective, chosen, told)
        told["memory_mb"], told["memory_over_trl"] = {}, {}
        for objective in [] if chosen.no_memory else chosen.objectives[: 1 if chosen.quick else None]:
            used = memory(folder / "memory", objective, chosen.quick, chosen.threads)
            told["memory_mb"][objective] = {side: round(mb) for side, mb in used.items()}
            told["memory_over_trl"][objective] = round(used["strop"] / used["trl"], 2)
    if chosen.json:
        print(json.dumps(told))
        return
    for key, value in told.items():
        print(f"{key}: {json.dumps(value)}")


def speed(folder: Path, objective: str, chosen: argparse.Namespace, told: dict[str, Any]) -> None:
    """Fill in the ratios of one objective."""
    found: Found = {}
    for size in chosen.sizes:
        base = policy(folder, size)
        n = EXAMPLES[size] // (1 if objective == "sft" else 2) // (16 if chosen.quick else 1)
        found[size], tried = {}, told["trl_settings"].setdefault(objective, {}).setdefault(size, {})
        for mix in chosen.mixes:
            examples = data(objective, mix, n if mix == "sums" else n // 2)
            where = folder / size / mix
            some = Data(objective, examples.rows[: max(64, n // 4)])
            tried[mix] = settings = fastest(base, some, where / "try", chosen.threads)
            precision = faster_type(base, some, where / "type", chosen.threads)
            found[size][mix] = compared(
                base, examples, where, chosen.threads, settings, precision, passes=2 if chosen.quick else 4
            )
            if not chosen.json:
                for side, one in found[size][mix].items():
                    rate, cpu = examples.targets / one.wall_s, examples.targets / one.cpu_s
                    print(f"{objective} {size:>4} {mix:<9} {side:<5} {rate:>8,.0f} tokens/s {cpu:>8,.0f} per CPU s")
    for clock, where_told in (("wall_s", told), ("cpu_s", told["cpu"])):
        where_told[f"{objective}_over_trl"] = ratios(found, "trl", clock)
        where_told[f"{objective}_over_trl_plain"] = ratios(found, "plain", clock)


def fastest(base: Path, examples: Data, folder: Path, threads: int) -> dict[str, Any]:
    """The settings of TRL's with which it takes the least CPU time."""
    settings: dict[str, Any] = {}
    trl(base, examples, folder / "warm", threads, BATCH_TOKENS)
    best = trl(base, examples, folder / "first", threads, BATCH_TOKENS).cpu_s
    for name, (usual, other) in CHOICES.items():
        if name == "train_sampling_strategy" and examples.objective == "dpo":
            continue  # DPOTrainer's columns have no lengths to go by
        took = trl(base, examples, folder / name, threads, BATCH_TOKENS, **settings, **{name: other}).cpu_s
        settings[name] = other if took < best else usual
        best = min(best, took)
    return settings


def faster_type(base: Path, examples: Data, folder: Path, threads: int) -> str:
    """The arithmetic in which Strop takes the least CPU time."""
    took = {
        precision: strop(base, examples, folder / precision, threads, BATCH_TOKENS, precision).cpu_s
        for precision in ("float32", "bfloat16")
    }
    return min(took, key=lambda precision: took[precision])


def compared(
    base: Path, examples: Data, folder: Path, threads: int, settings: dict[str, Any], precision: str, passes: int
) -> dict[str, Pass]:
    """The best pass of each side."""
    made: dict[str, list[Pass]] = {"strop": [], "trl": [], "plain": []}
    for i in range(passes):
        made["strop"].append(strop(base, examples, folder / f"strop{i}", threads, BATCH_TOKENS, precision))
        made["trl"].append(trl(base, examples, folder / f"trl{i}", threads, BATCH_TOKENS, **settings))
        made["plain"].append(trl(base, examples, folder / f"plain{i}", threads, BATCH_TOKENS))
    return {side: Pass(min(one.wall_s for one in each), min(one.cpu_s for one in each)) for side, each in made.items()}


def ratios(found: Found, other: str, clock: str) -> dict[str, dict[str, float]]:
    """The other side's time over Strop's."""
    return {
        size: {
            mix: round(getattr(sides[other], clock) / getattr(sides["strop"], clock), 2)
            for mix, sides in by_mix.items()
        }
        for size, by_mix in found.items()
    }


def memory(folder: Path, objective: str, quick: bool, threads: int) -> dict[str, float]:
    """MB of each side with a large vocabulary, in two steps of 4,096 target tokens (--quick: one of 1,024)."""
    base, warm = policy(folder, "0.6M", VOCABULARY), policy(folder, "0.6M")
    tokens, steps = (1024, 1) if quick else (4096, 2)
    found = {}
    for side in ("strop", "trl"):
        asked = {
            "side": side,
            "base": str(base),
            "warm": str(warm),
            "folder": str(folder / objective / side),
            "objective": objective,
            "mix": "even",
            "examples": steps * tokens // (64 if objective == "sft" else 128),
            "batch_tokens": tokens,
            "threads": threads,
            "settings": {},
        }
        script = Path(__file__).with_name("train_sides.py")
        done = subprocess.run([sys.executable, script, json.dumps(asked)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found[side] = float(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
