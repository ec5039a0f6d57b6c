"""A flipped byte is found and named wherever it is; a whole lake has nothing to say; damage is never used unseen."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lake_rows import ledger, rollouts
from old_lake import unpack

from strop.storage.checkpoints import adopt
from strop.storage.checksums import catch_up
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.fsck import Audit, fsck
from strop.storage.fsck_rows import REFERENCES
from strop.storage.lake import Lake, open_lake
from strop.storage.place import place_of
from strop.storage.tables import (
    Context,
    Decision,
    Example,
    Metric,
    Plan,
    PluginState,
    Policy,
    PolicyExample,
    Problem,
    Rollout,
    Run,
    Score,
    TokenLogps,
    TrainMetric,
)

MAY_BE_WRONG = frozenset(
    {"ducklake_files_scheduled_for_deletion", "ducklake_file_column_stats", "ducklake_table_column_stats"}
)
"""Whose values may change unseen where no reader is misled: what is to be removed, and bounds that got wider."""


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, merged files, delete files, checkpoints, and a checksum of everything."""
    root = unpack(1, tmp_path_factory.mktemp("fsck")) / "lake"
    open_lake(root).close()
    catch_up(place_of(root))
    return root


@pytest.fixture
def grown(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(migrated, tmp_path / "lake"))


@pytest.fixture(scope="session")
def pointing(empty_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows that point to each other."""
    root = Path(shutil.copytree(empty_lake, tmp_path_factory.mktemp("pointing") / "lake"))
    work = root / "work" / "w"
    work.mkdir()
    (work / "model.safetensors").write_bytes(random.Random(0).randbytes(5000))
    path, content_hash = adopt(root, work)
    first_run, owner = row_ledger("run", 0, runs=1), row_ledger("generate", 1, policies=1, problems=2, rollouts=8)
    number = first_run.stage_run_id
    run = Run(
        run_id="t-s0", stage_run_id=number, recipe="r", recipe_json="{}", recipe_hash="h", seed=0, strop_version="0"
    )
    first = owner.stage_run_id << 20
    stamp: dict[str, Any] = {"run_id": "t-s0", "round": 1, "stage_run_id": owner.stage_run_id}
    policy = Policy(**stamp, policy_id=first, status="champion", kind="full", path=path, content_hash=content_hash)
    problems = [Problem(**stamp, problem_id=first + 1 + i, prompt=f"{i}") for i in range(2)]
    made = [
        Rollout(
            **stamp,
            rollout_id=first + 3 + i,
            problem_id=first + 1,
            policy_id=first,
            completion="x" * i,
            logps=[-(i + 1) / 7],
        )
        for i in range(8)
    ]
    with open_lake(root) as lake:
        lake.commit(first_run, rows={"runs": [run]})
        lake.commit(owner, rows={"policies": [policy], "problems": problems, "rollouts": made})
    return root


@pytest.fixture
def small(pointing: Path, tmp_path: Path) -> Iterator[Lake]:
    with open_lake(Path(shutil.copytree(pointing, tmp_path / "small"))) as lake:
        yield lake


def row_ledger(stage: str, round: int, **counts: int) -> Any:
    return ledger(stage, stage=stage, round=round, rows_json=json.dumps(counts))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def damages(audit: Audit) -> list[str]:
    return [f"{finding.where}: {finding.problem}" for finding in audit.findings if finding.damage]


def test_a_whole_lake_has_nothing_to_say(grown: Path, small: Lake) -> None:
    for root in (grown, small.root):
        audit = fsck(root)
        assert audit.findings == []
        assert audit.files >= 7
        assert audit.checkpoints > 0
        assert fsck(root, quick=True).findings == []


def test_what_an_older_strop_wrote_is_noted_as_unknown_and_is_no_damage(tmp_path: Path) -> None:
    audit = fsck(unpack(1, tmp_path) / "lake")
    assert not audit.damaged
    assert "58 files have no checksum" in audit.findings[0].problem


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_any_data_file_or_checkpoint_is_found_and_named(
    migrated: Path, grown: Path, seed: int
) -> None:
    dice = random.Random(seed)

    def flip_in(path: Path) -> None:
        flip(path, dice.randrange(path.stat().st_size), dice.randrange(8))

    with open_console(grown) as console:
        tables = console._catalog.tables.values()
        live = [Path(path) for table in tables for f in table.files for path in (f.path, f.deletes) if path is not None]
        folders = [grown / row[0] for row in console.query("SELECT DISTINCT path FROM policies").rows]
    first = {path for path in live if "/policies/" in str(path) or "/schema_versions/" in str(path)}
    assert len(live) > 50
    assert len(first) > 3
    for flipped in (first, [*folders, *(set(live) - first)]):  # without the first no checkpoint is looked at
        for path in flipped:
            flip_in(path if path.is_file() else dice.choice(list(path.iterdir())))
        named = {finding.where for finding in fsck(grown).findings if finding.kind in ("data file", "checkpoint")}
        assert {path.relative_to(grown).as_posix() for path in flipped} == named - {"policies"}
        for path in flipped:
            if path in first:
                shutil.copyfile(migrated / path.relative_to(grown), path)


def test_a_checkpoint_that_is_damaged_or_gone_is_named(small: Lake) -> None:
    weights = next((small.root / "policies").glob("*/*.safetensors"))
    flip(weights, 4321, 7)
    assert any(weights.parent.name in said and "hashes to" in said for said in damages(fsck(small.root)))
    shutil.rmtree(weights.parent)
    assert any(weights.parent.name in said and "is gone" in said for said in damages(fsck(small.root, quick=True)))


def test_numbers_that_have_no_short_decimal_and_the_state_of_a_controller_are_no_damage(lake: Lake) -> None:
    awkward = [replace(r, logps=[-0.1, -7.6615400314331055, -0.00019274283840786666]) for r in rollouts(2)]
    state = PluginState(run_id="t-s0", stage="control", state_json="{}")
    counted = row_ledger("control", 2, plugin_state=1)
    lake.commit(row_ledger("generate", 1, rollouts=2), rows={"rollouts": awkward})
    lake.commit(counted, rows={"plugin_state": [replace(state, round=2, stage_run_id=counted.stage_run_id)]})
    said = damages(fsck(lake.root))
    assert not [line for line in said if "statistics" in line or "plugin_state the ledger counts" in line], said
    lost = row_ledger("control.second", 2, plugin_state=1)
    lake.commit(lost, rows={})
    said = damages(fsck(lake.root))
    assert any("of plugin_state the ledger counts 1 rows, there are 0" in line for line in said), said


def test_a_missing_and_a_shortened_file_are_named_without_reading_any(small: Lake) -> None:
    gone = next(small.root.glob("data/main/rollouts/**/*.parquet"))
    cut = next(small.root.glob("data/main/problems/**/*.parquet"))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    said = damages(fsck(small.root, quick=True))
    assert any(
        gone.name in line and "is gone; it holds rollouts of generate in round 1 of run t-s0" in line for line in said
    )
    assert any(cut.name in line and "were written" in line for line in said)


def logical(path: Path) -> dict[str, list[str]]:
    """Every row of the catalog."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        tables = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(map(repr, connection.execute(f'SELECT * FROM "{name}"'))) for name in tables}
    finally:
        connection.close()


def check_flips(root: Path, number: int, seed: int) -> None:
    """Flip bits of the catalog until so many have changed a value that counts: each of those is found."""
    path, dice = root / "catalog.sqlite", random.Random(seed)
    whole, before = path.read_bytes(), logical(path)
    while number > 0:
        at = dice.randrange(len(whole))
        flip(path, at, dice.randrange(8))
        try:
            after = logical(path)
            changed = {name for name in before if after.get(name) != before[name]}
        except (sqlite3.Error, UnicodeDecodeError):
            changed = {"unreadable"}
        if changed - MAY_BE_WRONG:
            number -= 1
            assert damages(fsck(root)), (at, changed)
        for beside in root.glob("catalog.sqlite-*"):
            beside.unlink()
        path.write_bytes(whole)


def test_a_flipped_bit_that_changes_the_catalog_is_found(small: Lake) -> None:
    root = small.root
    small.close()
    check_flips(root, 12, seed=0)


@pytest.mark.slow
def test_many_flipped_bits_in_the_catalog_of_two_runs_are_found(grown: Path) -> None:
    check_flips(grown, 80, seed=1)


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("ducklake_snapshot_changes", "commit_message = 'another' WHERE snapshot_id = 3", "the row of snapshot 3"),
        ("ducklake_data_file", "begin_snapshot = 1 WHERE path LIKE '%generate%'", "is not what was written"),
        ("ducklake_data_file", "end_snapshot = 3 WHERE begin_snapshot = 2", "which deleted nothing"),
        ("ducklake_data_file", "path = 'elsewhere.parquet' WHERE begin_snapshot = 3", "is gone"),
        ("ducklake_column", "column_type = 'int32' WHERE column_name = 'rollout_id'", "is INTEGER, Strop's is BIGINT"),
        ("ducklake_file_column_stats", "max_value = '0' WHERE column_id = 1", "are not true of"),
        ("ducklake_table_column_stats", "min_value = '9', max_value = '9' WHERE column_id = 1", "are not true of"),
        ("ducklake_table_stats", "next_row_id = 0", "is given, and the next one is 0"),
        ("ducklake_metadata", "value = 'true' WHERE key = 'encrypted'", "the setting encrypted is 'true'"),
        ("strop_files", "hash = '00' WHERE path LIKE '%rollouts%'", "written were 00"),
    ],
)
def test_values_of_the_catalog_that_no_longer_fit_are_told(small: Lake, table: str, change: str, said: str) -> None:
    root = small.root
    small.close()
    with sqlite3.connect(root / "catalog.sqlite") as connection:
        assert connection.execute(f"UPDATE {table} SET {change}").rowcount > 0
    connection.close()
    found = damages(fsck(root))
    assert any(said in line for line in found), found


def test_every_reference_that_leads_nowhere_is_named(small: Lake) -> None:
    nowhere = 99 << 20
    owner = row_ledger(
        "verify", 1, plans=1, scores=3, decisions=2, examples=1, policies=1, policy_examples=1, contexts=1, metrics=1,
        problems=1, rollouts=1, token_logps=1, train_metrics=1,
    )  # fmt: skip
    at = iter(range(owner.stage_run_id << 20, (owner.stage_run_id << 20) + 99))
    of: dict[str, Any] = {"run_id": "t-s0", "round": 1, "stage_run_id": owner.stage_run_id}
    rows = {
        "problems": [Problem(**of, problem_id=next(at), prompt="p", parents=[nowhere])],
        "plans": [Plan(**of, plan_id=next(at), problem_id=nowhere, context_id=nowhere, start_rollout_id=nowhere)],
        "rollouts": [
            Rollout(
                **of, rollout_id=next(at), problem_id=nowhere, policy_id=nowhere, plan_id=nowhere, context_id=nowhere,
                parent_rollout_id=nowhere, completion="",
            )
        ],
        "scores": [
            Score(
                **of, score_id=next(at), subject_id=nowhere, subject_kind=kind, problem_id=nowhere, supersedes=nowhere
            )
            for kind in ("rollout", "problem", "pair")
        ],
        "decisions": [
            Decision(**of, decision_id=next(at), subject_kind=kind, subject_id=nowhere, keep=True)
            for kind in ("rollout", "policy")
        ],
        "examples": [
            Example(
                **of, example_id=next(at), kind="sft", prompt="p", problem_id=nowhere, rollout_id=nowhere,
                rejected_rollout_id=nowhere, sources=[nowhere],
            )
        ],
        "policies": [
            Policy(
                **of, policy_id=next(at), status="rejected", kind="full", path="policies/x", content_hash="x",
                parent_policy_id=nowhere, reference_policy_id=nowhere, detail=f'{{"reward_policy_id": {nowhere}}}',
            )
        ],
        "token_logps": [TokenLogps(**of, rollout_id=nowhere, policy_hash="x", policy_id=nowhere, logps=[])],
        "policy_examples": [PolicyExample(**of, policy_id=nowhere, example_id=nowhere)],
        "train_metrics": [TrainMetric(**of, policy_id=nowhere, step=1, name="loss", value=1.0)],
        "contexts": [
            Context(**of, context_id=next(at), name="c", text="t", parent_context_id=nowhere, sources=[nowhere])
        ],
        "metrics": [Metric(**of, metric_id=next(at), name="m", value=1.0, n=1, policy_id=nowhere, context_id=nowhere)],
    }  # fmt: skip
    small.commit(owner, rows=rows)
    found = [f for f in fsck(small.root).findings if f.problem.endswith("such rows)")]
    assert len(found) == len(REFERENCES) - 1 + 4  # no stage run re-uses another; three scores, with two references
    assert all(str(nowhere) in finding.problem for finding in found)


def test_rows_that_do_not_fit_the_ledger_are_named(small: Lake) -> None:
    owner = row_ledger("filter", 1, rollouts=5, scores=1)
    stamp: dict[str, Any] = {"run_id": "t-s0", "round": 1, "stage_run_id": owner.stage_run_id}
    twice = [Score(**stamp, score_id=owner.stage_run_id << 20, subject_id=0) for _ in range(2)]
    small.commit(owner, rows={"scores": twice, "rollouts": rollouts(1, first=7, run_id="t-s0", stage_run_id=4)})
    said = damages(fsck(small.root))
    for expected in (
        "of rollouts the ledger counts 5 rows, there are 0",
        "of scores the ledger counts 1 rows, there are 2",
        f"score_id {owner.stage_run_id << 20} is there 2 times",
        "rollout_id 7 is not of its stage run 4",
        "stage run 4 is not in the ledger and has 1 rows",
    ):
        assert any(expected in line for line in said), (expected, said)


def test_a_damaged_file_is_named_by_whoever_reads_it(small: Lake) -> None:
    path = next(small.root.glob("data/main/rollouts/**/*.parquet"))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    query = "SELECT sum(length(completion)) FROM rollouts"
    with open_console(small.root) as console, pytest.raises(LakeError, match=f"damaged: data/main/.*{path.name}.*copy"):
        console.query(query)
    with pytest.raises(LakeError, match=f"damaged: data/main/.*{path.name}.*copy of the lake"):
        small.rows(Rollout)
    with open_console(small.root) as console, pytest.raises(LakeError, match="query failed: Conversion Error"):
        console.query("SELECT CAST('x' AS INTEGER) FROM problems")


def test_a_run_does_not_go_on_from_a_damaged_file_or_catalog(small: Lake) -> None:
    small.verify("t-s0")
    path = next(small.root.glob("data/main/rollouts/**/*.parquet"))
    flip(path, path.stat().st_size // 2)
    with pytest.raises(LakeError, match=path.name):
        small.verify("t-s0")
    small.verify("another-run")
    flip(path, path.stat().st_size // 2)
    small.verify("t-s0")
    with sqlite3.connect(small.root / "catalog.sqlite") as connection:
        connection.execute("UPDATE ducklake_data_file SET begin_snapshot = 1 WHERE path LIKE '%generate%'")
    connection.close()
    with pytest.raises(LakeError, match=r"the catalog of the lake .* is damaged: the row of data file"):
        small.verify("t-s0")
