"""Two runs write into one lake while four readers ask it: every error a user would see, and every half snapshot.

    python benchmarks/concurrency.py [--seconds 300] [--quick] [--json]

Writers: two `strop run` of the smoke recipe made shorter, with ever more rounds. Readers, each a process: two through
the console's API, one with `strop sql --format json`, one with `strop status --json`. In every answer of the first
three, one statement over one snapshot, each committed shard must have all the rows its ledger row counts, a verified
shard a score for each rollout, and no table may have fewer rows than the answer before. Ends the writers with TERM,
then audits the lake with fsck.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.fsck import fsck

SHORTER = ("select.problems=96", "generate.n=4", "train.epochs=1")
STROP = [sys.executable, "-m", "strop.flows"]
COUNTED = ("rollouts", "scores", "decisions", "examples", "metrics", "policy_examples")
THERE = " UNION ALL ".join(f"SELECT stage_run_id, '{t}' AS name, count(*) AS n FROM {t} GROUP BY ALL" for t in COUNTED)
WHOLE = f"""
WITH said AS (
  SELECT s.stage_run_id, e.key AS name, CAST(e.value AS BIGINT) AS n FROM stage_runs s, json_each(s.rows_json) e
  WHERE e.key IN {COUNTED}),
there AS ({THERE}),
verified AS (
  SELECT r.run_id, r.round, r.split FROM rollouts r JOIN stage_runs s ON s.run_id = r.run_id AND s.round = r.round
    AND s.stage = CASE r.split WHEN 'heldout' THEN 'heldout.verify' ELSE 'verify' END GROUP BY ALL)
SELECT (SELECT count(*) FROM said FULL JOIN there USING (stage_run_id, name)
        WHERE coalesce(said.n, 0) <> coalesce(there.n, 0)) AS half,
  (SELECT count(*) FROM rollouts r JOIN verified USING (run_id, round, split)
   WHERE NOT EXISTS (SELECT 1 FROM scores s WHERE s.subject_id = r.rollout_id)) AS unscored,
  (SELECT count(*) FROM stage_runs) AS shards, (SELECT count(*) FROM rollouts) AS rollouts,
  (SELECT count(*) FROM scores) AS scores"""


def by_console(lake: Path) -> tuple[int, list[int]]:
    with open_console(lake) as console:
        return console.snapshot, [int(value) for value in console.query(WHOLE).rows[0]]


def by_sql(lake: Path) -> tuple[int, list[int]]:
    line = [*STROP, "sql", "--lake", str(lake), "--format", "json", WHOLE]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return -1, [int(value) for value in json.loads(done.stdout)[0].values()]


def by_status(lake: Path) -> tuple[int, list[int]]:
    line = [*STROP, "status", "--lake", str(lake), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return -1, [0, 0, sum(len(run["rounds"]) for run in json.loads(done.stdout))]


READERS: dict[str, Callable[[Path], tuple[int, list[int]]]] = {
    "console 1": by_console,
    "console 2": by_console,
    "strop sql": by_sql,
    "strop status": by_status,
}


def read(name: str, lake: Path, until: float, results: Any) -> None:
    """Ask again and again; what was wrong."""
    asked, seen, half, fell, errors, last = 0, set[int](), 0, 0, list[str](), list[int]()
    while time.time() < until:
        asked += 1
        try:
            snapshot, (broken, unscored, *counts) = READERS[name](lake)
        except Exception as error:
            errors.append(f"{error} {getattr(error, 'stderr', '') or ''}"[-500:])
            continue
        seen.add(snapshot)
        half += bool(broken or unscored)
        fell += any(now < before for now, before in zip(counts, last, strict=False))
        last = counts
    results.put((name, {"asked": asked, "snapshots": len(seen - {-1}), "half": half, "fell": fell, "errors": errors}))


def write(lake: Path, run_id: str, log: Path) -> subprocess.Popen[bytes]:
    settings = [word for text in SHORTER for word in ("--set", text)]
    line = [*STROP, "run", "smoke", "--run-id", run_id, "--rounds", "9999", "--no-prefect", "--quiet", *settings]
    return subprocess.Popen([*line, "--lake", str(lake)], stdout=subprocess.DEVNULL, stderr=log.open("wb"))


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    lake = folder / "lake"
    writers = {name: write(lake, name, folder / f"{name}.log") for name in ("a", "b")}
    while not (lake / "catalog.sqlite").is_file() or is_being_made(lake):
        time.sleep(0.2)
    results: Any = multiprocessing.Queue()
    began, until = time.time(), time.time() + seconds
    first = read_catalog(lake).snapshot
    readers = [multiprocessing.Process(target=read, args=(name, lake, until, results)) for name in READERS]
    for reader in readers:
        reader.start()
    of_readers = dict(results.get() for _ in readers)
    for reader in readers:
        reader.join()
    errors = []
    for name, writer in writers.items():
        ended_early = writer.poll()
        writer.send_signal(signal.SIGTERM)
        try:
            writer.wait(60)
        except subprocess.TimeoutExpired:
            writer.kill()
            errors.append(f"run {name} did not end within a minute after TERM")
        if writer.wait() != 130 or ended_early is not None:
            errors.append(f"run {name}: {writer.returncode}: {(folder / f'{name}.log').read_text()[-500:]}")
    _, (half, unscored, shards, rollouts, _) = by_console(lake)
    return {
        "seconds": round(time.time() - began),
        "snapshots made": read_catalog(lake).snapshot - first,
        "shards": shards,
        "rollouts": rollouts,
        "errors of writers": errors,
        "errors of readers": [text for of in of_readers.values() for text in of["errors"]],
        "answers": {name: of["asked"] for name, of in of_readers.items()},
        "snapshots seen": {name: of["snapshots"] for name, of in of_readers.items() if of["snapshots"]},
        "answers that were not whole": sum(of["half"] for of in of_readers.values()) + bool(half or unscored),
        "counts that fell": sum(of["fell"] for of in of_readers.values()),
        "damages found by fsck": sum(finding.damage for finding in fsck(lake).findings),
    }


def is_being_made(lake: Path) -> bool:
    """Whether the lake is still being made."""
    try:
        by_console(lake)
    except Exception:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--quick", action="store_true", help="20 seconds")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ.pop("STROP_LAKE", None)
    with tempfile.TemporaryDirectory(prefix="strop-concurrent-") as folder:
        found = measure(Path(folder), 20.0 if given.quick else given.seconds)
    print(json.dumps(found) if given.json else "\n".join(f"{name:28} {value}" for name, value in found.items()))
    wrong = ("errors of writers", "errors of readers", "answers that were not whole", "counts that fell")
    return 1 if any(found[name] for name in (*wrong, "damages found by fsck")) else 0


if __name__ == "__main__":
    sys.exit(main())
