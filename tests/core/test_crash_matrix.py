"""kill -9 at each point named in docs/care.md, one run through all of them: it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from strop.flows.recipes import __path__ as recipes

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "care.md"
CONTROLLER = '''
from strop.core.plugin import Config, Returned, stage


class Warmer(Config):
    """Nothing to set."""


@stage("control")
def warmer(config: Warmer, *, round, state):
    seen = [*(state or {}).get("rounds", []), round]
    return Returned({"generate.temperature": 1.0 + 0.1 * len(seen)}, {"rounds": seen})
'''


def small(folder: Path) -> Path:
    """The smoke recipe with its own base policy, a tenth of its work, three shards a round and a controller."""
    recipe = yaml.safe_load((Path(recipes[0]) / "smoke.yaml").read_text())
    recipe |= {"name": "crash", "rounds": 2, "workers": 2, "shard_rollouts": 160, "heldout": {"n": 4, "max_tokens": 16}}
    recipe["tasks"][0] |= {"train": 192, "heldout_per_category": 20}
    changes: dict[str, dict[str, Any]] = {
        "select": {"problems": 96},
        "generate": {"n": 4, "max_tokens": 16},
        "synthesize": {"problems": 24},
        "train": {"epochs": 1, "batch_tokens": 64, "save_every_steps": 2},
    }
    stages = []
    for item in recipe["round"]:
        ((kind, value),) = item.items()
        stages.append({kind: {**value, **changes[kind]} if kind in changes else value})
    recipe["round"] = [*stages, {"control": "./warmer.py:warmer"}]
    (folder / "warmer.py").write_text(CONTROLLER)
    path = folder / "crash.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


FULL = (
    "0 start before put",
    "0 base before base copied",
    "0 base before checkpoint folder renamed",
    "1 select before own bytes",
    "1 select before rows",
    "1 generate before staged bytes",
    "1 generate after staged bytes",
    "1 generate before flush 2",
    "1 generate before sql COMMIT",
    "1 verify after staged bytes",
    "1 filter after own bytes",
    "1 train before examples file",
    "1 train before checkpoint bytes",
    "1 train after checkpoint bytes",
    "1 train before training result",
    "1 train before checkpoint folder renamed",
    "1 train before key",
    "1 gate before put",
    "1 control before rows",
)
"""Every place that writes: an order, a shard of a worker or of this process, a commit, the catalog, a checkpoint."""


def points() -> list[str]:
    """The lines of the page's list."""
    (text,) = re.findall(r"```crash-points\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for line in text.splitlines() if line]


def walk(folder: Path, wanted: list[str], how: str = "kill") -> list[dict[str, Any]]:
    code = "import json, sys; import crash_matrix; from pathlib import Path; "
    code += "crash_matrix.main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])"
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code, small(folder), folder, json.dumps(wanted), how],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_point_the_run_ends_as_if_nothing_had_happened(every: int, tmp_path: Path) -> None:
    wanted = points()[::every]
    assert len(wanted) >= 40
    *lives, end = walk(tmp_path, wanted)
    assert [line["point"] for line in lives] == [*wanted, None]
    assert [line["ended"] for line in lives] == [-9] * len(wanted) + [0]
    for line in lives:
        assert (line.get("strange", 0), line.get("undone", 0)) == (0, 0), line
    assert end["rollouts"] == end["distinct"] == end["expected"] > 1000
    assert end == end | {"different": [], "staged": 0, "damage": []}


def test_a_disk_that_is_full_at_any_write_is_named_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    *lives, end = walk(tmp_path, [*FULL], "full")
    assert [line["point"] for line in lives] == [*FULL, None]
    for line in lives[:-1]:
        assert line["ended"] == 0, line
        round, step = line["point"].split()[:2]
        assert re.search("the disk is full|free some space|make room", line["said"]), line
        in_a_step = f"round {round}, {step}: " in line["said"]
        assert in_a_step or f"round {round} of crashing" in line["said"] or "move the checkpoint" in line["said"], line
        assert (line["strange"], line["undone"]) == (0, 0), line
    assert end == end | {"different": [], "staged": 0, "damage": []}


def test_the_page_names_a_point_in_every_stage_and_at_every_step_of_a_commit() -> None:
    from crash_points import HERE, IN_WORKER, Point

    found = [Point.of(text) for text in points()]
    assert len(set(found)) == len(found) >= 40
    kinds = {"select", "generate", "verify", "filter", "synthesize", "build", "train", "gate", "control", "heldout"}
    assert kinds <= {point.step.split(".")[0] for point in found}
    assert any(point.step.startswith("evaluate.") for point in found)
    assert {*HERE, *IN_WORKER} == {point.what for point in [*found, *map(Point.of, FULL)]} - {
        "step",
        "sql BEGIN",
        "sql COMMIT",
    }


@pytest.mark.parametrize("text", ["1 generate during put", "1 generate before nothing", "one generate before put"])
def test_a_point_that_is_none_is_refused(text: str) -> None:
    from crash_points import Point

    with pytest.raises(ValueError, match=r"no point|invalid literal"):
        Point.of(text)
