"""Two machines commit to one lake at once, one of them is killed again and again: nothing lost, doubled or torn."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from lake_rows import ledger

from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.data_files import data_files
from strop.storage.lake import open_lake
from strop.storage.tables import Rollout, Score

SHARDS = 10
WRITER = f"""
import sys
from pathlib import Path
from lake_rows import ledger, rollouts
from strop.storage.lake import open_lake
from strop.storage.parquet import write_rows
from strop.storage.tables import Rollout, Score

me = int(sys.argv[2])
with open_lake(Path(sys.argv[1])) as lake:
    for i in range({SHARDS}):
        rows = rollouts(20, first=10000 * me + 100 * i)
        scores = [Score(score_id=r.rollout_id, subject_id=r.rollout_id) for r in rows]
        file = write_rows(lake.staging / f"{{me}}-{{i}}.parquet", Rollout, rows)
        print(i, flush=True)
        made = lake.commit(ledger(f"{{me}}-{{i}}", shard=me), files={{"rollouts": [file]}}, rows={{"scores": scores}})
        print("there" if made is None else "made", flush=True)
"""
COUNT = "SELECT (SELECT count(*) FROM rollouts), (SELECT count(*) FROM scores), (SELECT count(*) FROM stage_runs)"


def writer(root: Path, me: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(root), str(me)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )


def test_two_machines_write_at_once_and_kills_cost_nothing(machines) -> None:
    dice = random.Random(0)
    steady = writer(machines.a, 1)
    seen = set()
    for root, shard in ((machines.b, 2), (machines.a, 6)):
        with writer(root, 2) as killed:
            assert killed.stdout is not None
            for line in killed.stdout:
                if line == f"{shard}\n":
                    time.sleep(dice.uniform(0.0, 0.04))  # somewhere within the commit
                    killed.kill()
        assert killed.returncode == -9
        with open_console(machines.b) as console:
            n_rollouts, n_scores, n_keys = console.query(COUNT).rows[0]
        assert n_rollouts == n_scores == 20 * n_keys
        seen.add(n_keys)
    last = writer(machines.a, 2)
    said, errors = last.communicate(timeout=120)
    assert (last.returncode, errors) == (0, "")
    assert said.count("there\n") >= 6, "what was committed before a kill is not made again"
    _, errors = steady.communicate(timeout=120)
    assert (steady.returncode, errors) == (0, "")
    assert len(seen) == 2
    expected = [10000 * me + 100 * i + j for me in (1, 2) for i in range(SHARDS) for j in range(20)]
    with open_lake(machines.b) as lake:
        assert [r.rollout_id for r in lake.rows(Rollout)] == expected
        assert [s.score_id for s in lake.rows(Score)] == expected
        assert len(lake.committed("t-s0")) == 2 * SHARDS
        assert lake.commit(ledger("2-3"), rows={}) is None
        registered = [f.path for table in read_catalog(machines.a).tables.values() for f in table.files]
        stored = {file.location for file in data_files(lake.place).list("data/main")}
    assert len(registered) == len(set(registered))
    assert set(registered) <= stored
