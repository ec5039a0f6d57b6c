"""Every table's rows come back as they went in."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from lake_rows import ledger, one_of_each, rollouts

from strop.storage.errors import LakeError
from strop.storage.lake import Lake
from strop.storage.parquet import from_arrow, to_arrow, write_rows
from strop.storage.tables import BY_NAME, TABLES, Metric, Rollout, SchemaVersion, Score, StageRun


def test_every_table_comes_back_with_nulls_and_lists(lake: Lake) -> None:
    given = one_of_each()
    assert {*given, "stage_runs"} == {row.TABLE for row in TABLES}
    run = ledger(upstream=["a", "b"], tokens=3)
    assert lake.commit(run, rows=given) is not None
    for table, rows in given.items():
        found = lake.rows(BY_NAME[table], "stage_run_id = 5")
        assert found == rows, table
    assert lake.rows(StageRun) == [run]
    assert lake.committed("t-s0") == {"k": run}
    assert lake.committed("another") == {}


def test_worker_files_and_rows_of_one_table_are_both_there(lake: Lake) -> None:
    files = [write_rows(lake.staging / f"{i}.parquet", Rollout, rollouts(3, first=10 * i)) for i in (1, 2)]
    lake.commit(ledger(), files={"rollouts": files}, rows={"rollouts": rollouts(1)})
    assert [r.rollout_id for r in lake.rows(Rollout)] == [1, 10, 11, 12, 20, 21, 22]
    assert not any(lake.staging.iterdir())


def test_rows_come_in_order_of_id_whatever_the_order_of_commits(lake: Lake) -> None:
    for key, first in (("b", 50), ("a", 10)):
        lake.commit(ledger(key), rows={"rollouts": rollouts(2, first=first)[::-1]})
    assert [r.rollout_id for r in lake.rows(Rollout)] == [10, 11, 50, 51]


def test_a_condition_and_its_parameters_choose_rows(lake: Lake) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(8)})
    found = lake.rows(Rollout, "problem_id = ? AND completion <> ?", [1, "answer 5"])
    assert [r.completion for r in found] == ["answer 4", "answer 6", "answer 7"]


def test_wide_columns_can_be_left_out(lake: Lake) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(1, token_ids=[1], logps=[-1.0])})
    full, light = lake.rows(Rollout)[0], lake.rows(Rollout, without=["logps"])[0]
    assert full.logps == [-1.0]
    assert (light.logps, light.token_ids, light.completion) == (None, [1], "answer 0")
    with pytest.raises(LakeError, match="did you mean 'logps'"):
        lake.rows(Rollout, without=["logp"])


def test_nan_is_stored_as_null(lake: Lake) -> None:
    lake.commit(ledger(), rows={"metrics": [Metric(metric_id=1, name="pass@1", value=float("nan"), n=1)]})
    assert lake.rows(Metric)[0].value is None


def test_types_are_exactly_the_tables(tmp_path: Path) -> None:
    for row in TABLES:
        path = write_rows(tmp_path / f"{row.TABLE}.parquet", row, [])
        names = {c[0]: c[1] for c in duckdb.sql(f"DESCRIBE SELECT * FROM '{path}'").fetchall()}
        from strop.storage.tables import columns

        wanted = {c.name: c.sql_type.replace("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE") for c in columns(row)}
        assert names == wanted


def test_files_are_encoded_as_measured_best(tmp_path: Path) -> None:
    rows = rollouts(20000, token_ids=[5, 6], logps=[-0.5, -0.125])
    data = pq.ParquetFile(write_rows(tmp_path / "r.parquet", Rollout, rows)).metadata
    assert data.row_group(0).num_rows == 8192
    chunks = {data.row_group(0).column(i).path_in_schema: data.row_group(0).column(i) for i in range(data.num_columns)}
    assert {c.compression for c in chunks.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in chunks["logps.list.element"].encodings
    assert "RLE_DICTIONARY" in chunks["token_ids.list.element"].encodings
    assert chunks["rollout_id"].statistics.min == 1


def test_a_value_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match=r"scores\.value must be double"):
        to_arrow(Score, [Score(subject_id=1, value="high")])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rollouts\.token_ids must be list"):
        to_arrow(Rollout, rollouts(1, token_ids=[2**31]))


def test_rows_from_arrow_are_as_frozen_as_others() -> None:
    made = from_arrow(SchemaVersion, to_arrow(SchemaVersion, [SchemaVersion(version=3, strop_version="9")]))[0]
    assert made == SchemaVersion(version=3, strop_version="9")
    with pytest.raises(AttributeError):
        made.version = 4  # type: ignore[misc]


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_rows(tmp_path / "a.parquet", Rollout, rollouts(1))
    assert list(tmp_path.iterdir()) == []
