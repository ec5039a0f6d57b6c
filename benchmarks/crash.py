"""Kill runs with SIGKILL at random moments, resume each to its end, and compare its lake with an undisturbed run's.

    python benchmarks/crash.py [--kills 100] [--seed 0] [--longest 6] [--quick] [--json]

Each life is a `strop run` of its own: the smoke recipe, made shorter, without Prefect. It is killed a random time after
its first event, up to `--longest` seconds, and started again by the same line; a run that ends is compared and the next
one begins in a new lake, until so many kills are made. Prints where they fell, rollouts lost and duplicated, and the
tables that differ: there must be none. Clocks and names of machines aside, every column of every row is compared.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strop.storage.console import open_console
from strop.storage.fsck import fsck
from strop.storage.tables import TABLES, columns

CLOCKS = {"started_at", "seconds", "host", "created_at", "latency_s"}
SHORTER = (
    "select.problems=160",
    "generate.n=4",
    "synthesize.problems=32",
    "train.epochs=1",
    "train.save_every_steps=5",
)
LINE = [sys.executable, "-m", "strop.flows", "run", "smoke", "--run-id", "r", "--no-prefect", "--json"]


@dataclass
class Life:
    """One process and what it says of where it is."""

    lake: Path
    at: tuple[int, str] = (0, "start")
    begun: threading.Event = field(default_factory=threading.Event)

    def run(self, kill_after: float | None) -> bool:
        """Let it run, or kill it so many seconds after its first event; True when it was killed."""
        line = [*LINE, "--lake", str(self.lake), *(word for text in SHORTER for word in ("--set", text))]
        with (
            (self.lake.parent / "errors.log").open("w+") as errors,
            subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            listener = threading.Thread(target=self._listen, args=(process.stdout,), daemon=True)
            listener.start()
            if kill_after is not None:
                self.begun.wait(120)
                try:
                    process.wait(kill_after)
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
            listener.join()
            if code not in (0, -signal.SIGKILL):
                errors.seek(0)
                raise SystemExit(f"strop run ended with {code}: {errors.read()[-2000:]}")
        return code != 0

    def _listen(self, lines: Any) -> None:
        for text in lines:
            self.begun.set()
            if text.startswith("{"):
                event = json.loads(text)
                self.at = event["round"], event["stage"] or event["kind"]
        self.begun.set()


def content(lake: Path) -> dict[str, tuple[int, int]]:
    """Of every table the number of rows and one number that stands for all their values."""
    found = {}
    with open_console(lake) as console:
        for row in TABLES:
            wanted = ", ".join(c.name for c in columns(row) if c.name not in CLOCKS)
            sql = f"SELECT count(*), coalesce(bit_xor(hash(({wanted}))), 0) FROM {row.TABLE}"
            found[row.TABLE] = tuple(console.query(sql).rows[0])
    return found  # type: ignore[return-value]


def rollouts(lake: Path) -> list[int]:
    with open_console(lake) as console:
        return [int(id) for (id,) in console.query("SELECT rollout_id FROM rollouts").rows]


def measure(folder: Path, kills: int, seed: int, longest: float) -> dict[str, Any]:
    dice, started = random.Random(seed), time.monotonic()
    Life(folder / "plain" / "lake").run(None)
    plain, whole = content(folder / "plain" / "lake"), set(rollouts(folder / "plain" / "lake"))
    fell: collections.Counter[str] = collections.Counter()
    made = runs = lost = twice = damaged = 0
    different: set[str] = set()
    while made < kills:
        runs += 1
        lake = folder / f"run{runs}" / "lake"
        lake.parent.mkdir()
        killed = True
        while killed:
            life = Life(lake)
            killed = life.run(dice.uniform(0, longest) if made < kills else None)
            if killed:
                made += 1
                fell[life.at[1].split(".")[0]] += 1
                print(f"\r{made} kills, {runs} runs", end="", file=sys.stderr, flush=True)
        found = rollouts(lake)
        lost += len(whole - set(found))
        twice += len(found) - len(set(found))
        here = content(lake)
        different |= {table for table in plain if here[table] != plain[table]}
        damaged += sum(finding.damage for finding in fsck(lake).findings)
    print(file=sys.stderr)
    return {
        "kills": made,
        "runs": runs,
        "fell in": dict(fell.most_common()),
        "rollouts of a run": len(whole),
        "rollouts lost": lost,
        "rollouts duplicated": twice,
        "tables compared": len(plain),
        "tables that differ": sorted(different),
        "damages found by fsck": damaged,
        "seconds": round(time.monotonic() - started),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds from a life's first event to its kill")
    parser.add_argument("--quick", action="store_true", help="8 kills")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strop-crash-") as folder:
        (Path(folder) / "plain").mkdir()
        found = measure(Path(folder), 8 if given.quick else given.kills, given.seed, given.longest)
    print(json.dumps(found) if given.json else "\n".join(f"{name:24} {value}" for name, value in found.items()))
    return 1 if found["rollouts lost"] or found["rollouts duplicated"] or found["tables that differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
