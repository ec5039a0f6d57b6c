"""A run that an older Strop began goes on in today's, to the same end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from lake_content import content

from strop.core.recipe import load
from strop.storage.tables import SCHEMA_VERSION

_spec = importlib.util.spec_from_file_location("old_lake", Path(__file__).parents[1] / "storage" / "old_lake.py")
old_lake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(old_lake)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_run_killed_under_an_older_version_ends_like_one_that_was_not(version, tiny, tmp_path):
    folder = old_lake.unpack(version, tmp_path)
    before = content(folder / "lake", without_run=True, run_id="halfway")
    summary = tiny.run(load(str(folder / "tiny.yaml")), folder, run_id="halfway")
    assert summary.rounds == 3
    whole = content(folder / "lake", without_run=True, run_id="whole")
    after = content(folder / "lake", without_run=True, run_id="halfway")
    assert len(before["stage_runs"]) < len(whole["stage_runs"])
    for rows in (after, whole):
        # Then verify was cut into other shards and had fewer settings, and no step's metrics were kept.
        rows["stage_runs"] = [row for row in rows["stage_runs"] if "'verify'" not in row and "'train'" not in row]
        rows["policies"] = [row.replace(',"step":1', "") for row in rows["policies"]]
        del rows["train_metrics"]
    assert after == whole
