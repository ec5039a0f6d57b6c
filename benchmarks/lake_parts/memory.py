"""Resident memory of a writer above the batch it holds, in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def writer(folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """Ten commits of one batch of 50,000 rollouts."""
    n = 5_000 if chosen.quick else 50_000
    command = [sys.executable, "-m", "lake_parts.memory", str((folder / "lake").absolute()), str(n)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _write(root: Path, n: int) -> dict[str, float]:
    from lake_parts import append, rows

    from strop.storage.lake import open_lake
    from strop.storage.parquet import write_table
    from strop.storage.tables import Rollout

    table = rows.rollouts(0, n)
    table = table.combine_chunks()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    with open_lake(root, create=True) as lake:
        for index in range(10):
            staged = write_table(lake.staging / "x.parquet", Rollout, table)
            lake.commit(append.ledger(index), files={"rollouts": [staged]})
    return {
        "rollouts": n,
        "batch_mb": table.nbytes / 2**20,
        "before_mb": before,
        "peak_mb": _status("VmHWM"),
        "above_batch_mb": _status("VmHWM") - before,
    }


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(json.dumps(_write(Path(sys.argv[1]), int(sys.argv[2]))))
