"""What a commit costs, as a ratio to writing and fsyncing the same Parquet by hand in the same run.

    python benchmarks/lake.py [--quick] [--json]

Rows are about 5 KB wide (512 tokens with their log-probabilities). Each figure is the median of several repetitions,
with the two sides taking turns, so that a busy machine slows both. Also: opening a console and its first query.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from strop.storage.durable import fsync
from strop.storage.ids import shard_number
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import to_arrow, write_table
from strop.storage.tables import Rollout, StageRun

TARGETS = {"commit_1k_rows": 1.4, "commit_50k_rows": 1.15, "console_s": 0.15}
CONSOLE = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from strop.storage.console import open_console
with open_console(Path(sys.argv[1])) as console:
    console.query("SELECT count(*) FROM rollouts")
print(time.perf_counter() - start)
"""


def wide_rows(n: int, seed: int) -> pa.Table:
    """n rollouts of about 5 KB."""
    dice = random.Random(seed)
    tokens = [[dice.randrange(32000) % 4000 for _ in range(512)] for _ in range(64)]
    logps = [[-dice.expovariate(2.0) for _ in range(512)] for _ in range(64)]
    text = ["".join(dice.choices("abcdefghij klmnopqrstuv", k=1500)) for _ in range(64)]
    rows = [
        Rollout(
            run_id="bench-s0",
            round=1,
            rollout_id=i + 1,
            problem_id=i // 8,
            prompt=f"problem {i // 8}",
            completion=text[(i * 7) % 64] + str(i),
            n_tokens=512,
            token_ids=tokens[i % 64],
            logps=logps[(i * 5) % 64],
        )
        for i in range(n)
    ]
    return to_arrow(Rollout, rows)


def ledger(index: int) -> StageRun:
    """The ledger row of one commit."""
    number = shard_number("bench-s0", 1, "generate", index)
    return StageRun(
        run_id="bench-s0",
        round=1,
        stage_run_id=number,
        key=f"bench-{index}",
        shard=index,
        shards=1,
        config_json="{}",
        upstream=[],
        seed=0,
        rows_json="{}",
        stage="generate",
        kind="generate",
        plugin="sample",
        plugin_version="1",
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def commit_ratio(lake: Lake, rows: int, repetitions: int, first: int) -> dict[str, float]:
    """Write, fsync and commit against write and fsync, wall and CPU."""
    table = wide_rows(rows, seed=first)

    def raw() -> None:
        path = lake.root / "work" / "raw.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=8192)
        fsync(path)
        fsync(path.parent)

    def ours(index: int) -> None:
        staged = write_table(lake.staging / f"{index}.parquet", Rollout, table)
        lake.commit(ledger(index), files={"rollouts": [staged]})

    raw()
    pairs = [(timed(raw), timed(partial(ours, first + i))) for i in range(repetitions)]
    walls, cpus = zip(*[((b[0], a[0]), (b[1], a[1])) for a, b in pairs], strict=True)
    return {
        "wall_ratio": statistics.median(ours for ours, _ in walls) / statistics.median(raw for _, raw in walls),
        "cpu_ratio": statistics.median(ours for ours, _ in cpus) / statistics.median(raw for _, raw in cpus),
        "commit_wall_s": statistics.median(ours for ours, _ in walls),
        "raw_wall_s": statistics.median(raw for _, raw in walls),
    }


def console_seconds(root: Path, repetitions: int) -> float:
    """A fresh process: import, open, first query."""
    command = [sys.executable, "-c", CONSOLE, str(root)]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(repetitions)
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, 10k rows instead of 50k")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    chosen = parser.parse_args()
    big = 10_000 if chosen.quick else 50_000
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "lake"
        with open_lake(root, create=True) as lake:
            found["commit_1k_rows"] = commit_ratio(lake, 1000, 7 if chosen.quick else 40, 0)
            found[f"commit_{big // 1000}k_rows"] = commit_ratio(lake, big, 1 if chosen.quick else 5, 1000)
        found["console_s"] = console_seconds(root, 3 if chosen.quick else 9)
    found["targets"] = TARGETS
    if chosen.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
