"""What the lake costs, each figure as a ratio to a named alternative measured in the same run.

    python benchmarks/lake.py [--quick] [--json] [--only append queries ...] [--folder /tmp]
    python benchmarks/lake.py --only queries --rollouts 10000000 --narrow

Both sides take turns and the minimum of the repetitions counts. The verdicts are on CPU time where a ratio is meant: on
a busy machine wall time is noise. Rollouts are about 5 KB each (see `lake_parts/rows.py`). Whole: 6 GB of disk and 15
minutes; quick: one minute, and no verdict on what takes a query of milliseconds, where every overhead shows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from lake_parts import append, files, memory, queries, stores

PARTS = {
    "append": append.chunks,
    "commit": append.one_commit,
    "memory": memory.writer,
    "stores": stores.compared,
    "queries": queries.of_many,
    "console": queries.console,
    "files": files.many,
}
TARGETS = {
    "append.50k.cpu_ratio": 1.15,
    "append.1k.cpu_ratio": 1.4,
    "append.size_ratio": 0.95,
    "commit.wall_ms": 20,
    "memory.above_batch_mb": 400,
    "queries.pass_at_k.console_cpu_ratio": 1.05,
    "queries.round_text.console_cpu_ratio": 1.05,
    "queries.point.console_cpu_ms_above_a_table": 3,
    "queries.lineage.console_cpu_ratio": 1.4,
    "console.first_query_s": 0.15,
}
WHOLE = {name for name in TARGETS if name.startswith("queries.") and name.endswith("_ratio")}
"""Targets for a million rollouts."""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows, fewer repetitions")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--rollouts", type=int, help="rollouts to query; default 1,000,000, quick 20,000")
    parser.add_argument("--narrow", action="store_true", help="rollouts to query have short texts and no tokens")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    chosen = parser.parse_args()
    chosen.rollouts = chosen.rollouts or (20_000 if chosen.quick else 1_000_000)
    found: dict[str, object] = {}
    for name in chosen.only:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            found[name] = PARTS[name](Path(folder), chosen)
            if not chosen.json:
                print(json.dumps({name: found[name]}, indent=2), flush=True)
    flat = flattened(found)
    verdicts = {
        name: {"found": flat[name], "target": target, "met": flat[name] <= target}
        for name, target in TARGETS.items()
        if name in flat and not (chosen.quick and name in WHOLE)
    }
    print(json.dumps({**found, "targets": verdicts} if chosen.json else verdicts, indent=2))


def flattened(found: dict[str, object], before: str = "") -> dict[str, float]:
    """Nested figures by dotted name."""
    flat: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{before}{name}.")
        elif isinstance(value, int | float):
            flat[before + name] = value
    return flat


if __name__ == "__main__":
    main()
