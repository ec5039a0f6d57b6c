"""Tokens per second of the hf engine against transformers' own `generate`, and against vLLM, bare and through Strop.

    python benchmarks/generate.py [--quick] [--json] [--vllm] [--policy DIR] [--sizes 0.6M 3M 30M] [--n 1 8 64]

Every side samples the same prompts from the same checkpoint with the whole machine and as many tokens as the policy
makes of them (a random policy seldom ends before `max_tokens`). `generate` runs in one process with a thread for every
core, at the best of its batch sizes; the engine runs as the loop would run it, in a worker for every core or in one
with all threads, whichever is faster. Log-probabilities and entropies are part of the engine's time, and no part of
`generate`'s.

0.6M is the default recipe's base policy (pretrained first, which takes a minute, unless --policy names it), whose
completions differ in length; 3M and 30M have random weights. Sides take turns and the best pass of each counts; what
else the machine does still moves the wall ratios, the ones of CPU seconds ("cpu") less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import warnings
from pathlib import Path

from generate_policies import Subject, subjects
from generate_sides import CORES, Pass, Plain, Side, engine, served
from transformers.utils import logging

BATCHES = (8, 16, 32, 64, 128, 256)
QUICK_BATCHES = (32, 128, 256)


def main() -> None:
    """Measure every size at every n."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rollouts, passes and batch sizes: 4 minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--vllm", action="store_true", help="vLLM too, bare and through Strop")
    parser.add_argument("--policy", type=Path, help="the default recipe's base policy, where there is one already")
    parser.add_argument("--sizes", nargs="+", default=["0.6M", "3M", "30M"], choices=["0.6M", "3M", "30M"])
    parser.add_argument("--n", nargs="+", type=int, default=[1, 8, 64], help="samples of a prompt")
    chosen = parser.parse_args()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, dict[str, Pass]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(Path(folder), chosen.policy, chosen.sizes, chosen.quick):
            found[subject.name] = measured(subject, chosen.n, chosen.vllm, chosen.quick, table=not chosen.json)
    if chosen.json:
        print(json.dumps(ratios(found)))


def measured(subject: Subject, ns: list[int], with_vllm: bool, quick: bool, table: bool) -> dict[str, dict[str, Pass]]:
    """n -> side -> its best pass."""
    found: dict[str, dict[str, Pass]] = {}
    with contextlib.ExitStack() as stack:
        plain = Plain(subject)
        sides: dict[str, Side] = {"generate": plain}
        sides[f"hf, {CORES} processes"] = stack.enter_context(engine(subject, CORES, 1))
        sides[f"hf, {CORES} threads"] = stack.enter_context(engine(subject, 1, CORES))
        if with_vllm:
            sides |= stack.enter_context(served(subject))
        for n in ns:
            prompts = subject.prompts[: max(1, subject.rollouts // n)]
            if not quick or not found:
                plain.batch = best_batch(plain, prompts, n, QUICK_BATCHES if quick else BATCHES)
            for side in sides.values():  # loads, and warms up
                side(prompts[:2], min(n, 2), 0)
            passes = [{name: side(prompts, n, i) for name, side in sides.items()} for i in range(2 if quick else 4)]
            best = {name: max((p[name] for p in passes), key=lambda p: p.tokens / p.wall_s) for name in sides}
            found[f"n={n}"] = best
            if table:
                for name, one in best.items():
                    about = f"batch {plain.batch}" if name == "generate" else ""
                    print(
                        f"{subject.name:>5} n={n:<3} {name:<16} {one.tokens / one.wall_s:>9,.0f} tokens/s "
                        f"{one.tokens / one.cpu_s:>9,.0f} per CPU s {one.tokens:>9,} tokens {about}",
                        flush=True,
                    )
    return found


def best_batch(plain: Plain, prompts: list[str], n: int, batches: tuple[int, ...]) -> int:
    """The batch size at which `generate` is fastest, on as many prompts as the largest takes."""
    some = prompts[: max(1, max(batches) // n)]
    speed = {}
    for plain.batch in [b for b in batches if b <= max(len(some) * n, min(batches))]:
        one = plain(some, n, 0)
        speed[plain.batch] = one.tokens / one.wall_s
    return max(speed, key=lambda batch: speed[batch])


def ratios(found: dict[str, dict[str, dict[str, Pass]]]) -> dict[str, object]:
    """Of tokens per second, and of tokens per CPU second under "cpu"."""

    def ratio(mine: str, theirs: str, clock: str) -> dict[str, dict[str, float]]:
        def speed(sides: dict[str, Pass], prefix: str) -> float:
            return max(p.tokens / getattr(p, clock) for name, p in sides.items() if name.startswith(prefix))

        return {
            size: {n: round(speed(sides, mine) / speed(sides, theirs), 3) for n, sides in by_n.items()}
            for size, by_n in found.items()
        }

    def all_of(clock: str) -> dict[str, object]:
        told: dict[str, object] = {"hf_over_generate": ratio("hf", "generate", clock)}
        if all("vllm" in sides for by_n in found.values() for sides in by_n.values()):
            told |= {"hf_over_vllm": ratio("hf", "bare", clock), "vllm_over_bare": ratio("vllm", "bare", clock)}
        return told

    return all_of("wall_s") | {"cpu": all_of("cpu_s")}


if __name__ == "__main__":
    main()
