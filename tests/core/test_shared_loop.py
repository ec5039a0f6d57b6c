"""A whole loop on PostgreSQL and S3, killed on one machine and resumed on another: the same lake as on one disk."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from lake_content import content

from strop.core.recipe import load
from strop.storage.checkpoints import hash_directory, local_checkpoint
from strop.storage.console import open_console
from strop.storage.data_files import data_files
from strop.storage.errors import LakeError
from strop.storage.exchange.policy import export_policy
from strop.storage.fsck import fsck
from strop.storage.lake import Lake, open_lake
from strop.storage.place import place_of
from strop.storage.tables import Policy

KILLED_AT = 20
"""Commits of the first machine: it dies in round 2, with a policy trained in round 1."""


def killed_at_commit(number: int, recipe: Path, root: Path) -> None:
    """In a process of its own: run the loop, and die just before its commit of that number."""
    import tiny_run

    from strop.core.round import run_loop

    tiny_run.inline(pytest.MonkeyPatch())
    plain, made = Lake.commit, [0]

    def commit(self, *arguments, **keywords):
        made[0] += 1
        if made[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *arguments, **keywords)

    Lake.commit = commit  # type: ignore[method-assign]
    run_loop(load(str(recipe)), lake=root, run_id="tiny")


def test_a_loop_killed_on_one_machine_goes_on_on_another(tiny, machines, tmp_path: Path) -> None:
    recipe = tiny.write(tmp_path)
    assert recipe.path is not None
    arguments = (KILLED_AT, recipe.path, machines.a)
    process = multiprocessing.get_context("spawn").Process(target=killed_at_commit, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with open_lake(machines.b, read_only=True) as lake:
        assert max(run.round for run in lake.committed("tiny").values()) == 2
        assert len(lake.rows(Policy)) == 2, "the second machine starts from what the first one trained"
    shared = tiny.run_loop(recipe, lake=machines.b, run_id="tiny")
    local = tiny.run(recipe, tmp_path)
    assert shared.champion_hash == local.champion_hash
    assert content(machines.b) == content(machines.a) == content(tmp_path / "lake")
    with open_lake(machines.a, read_only=True) as lake:
        policies = sorted(lake.rows(Policy), key=lambda policy: policy.round)
        assert len(policies) == 3
        for policy in policies:
            assert hash_directory(lake.checkpoint(policy)) == policy.content_hash
            assert local_checkpoint(machines.b, policy.path, policy.content_hash).is_dir()
    assert not (machines.a / "data").exists()
    assert exported(machines.a, "tiny/r2", tmp_path) == policies[-1].content_hash
    shutil.rmtree(machines.a / "policies")
    assert fsck(machines.a).findings == fsck(machines.b).findings == []
    store = data_files(place_of(machines.a))
    (tmp_path / "wrong").write_bytes(b"x")
    store.put({store.at(f"{policies[0].path}/model.safetensors"): tmp_path / "wrong"})
    store.delete([file.location for file in store.list(policies[1].path)])
    told = {finding.where: finding.problem for finding in fsck(machines.b).findings}
    assert "hashes to" in told.pop(policies[0].path)
    assert told == {policies[1].path: "the checkpoint of tiny/r1 is gone"}


def exported(root: Path, policy: str, folder: Path) -> str:
    """The hash of an exported policy, card and manifest aside, from a machine that has no copy of it."""
    shutil.rmtree(root / "policies")
    with open_console(root) as console:
        export_policy(console, policy, folder / "hub")
    for name in ("README.md", "recipe.json", "strop_export.json"):
        (folder / "hub" / name).unlink()
    return hash_directory(folder / "hub")


def test_a_run_is_driven_by_one_machine_at_a_time(tiny, machines, tmp_path: Path) -> None:
    from strop.storage.locks import run_lock

    recipe = tiny.write(tmp_path)
    with run_lock(machines.a, "tiny"), pytest.raises(LakeError, match="already being driven by process"):
        tiny.run_loop(recipe, lake=machines.b, run_id="tiny")
