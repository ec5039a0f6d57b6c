"""Appending: write, fsync and commit through the lake against write and fsync by hand; and one commit by itself."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from lake_parts import rows
from lake_parts.clock import in_turns, timed

from strop.storage.durable import fsync
from strop.storage.ids import shard_number
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import write_table
from strop.storage.tables import Decision, Metric, Rollout, Row, Score, StageRun

GIVEN = {"config_json": "{}", "upstream": [], "seed": 0, "rows_json": "{}", "plugin": "sample", "plugin_version": "1"}


def ledger(index: int, round: int = 1) -> StageRun:
    """The ledger row of one commit."""
    number = shard_number("bench-s0", round, "generate", index)
    shard = {"run_id": "bench-s0", "round": round, "stage_run_id": number, "key": f"bench-{index}", "shard": index}
    return StageRun(**shard, shards=1, stage="generate", kind="generate", **GIVEN)


def raw(table: pa.Table, path: Path) -> None:
    """What a script does that wants its file to be there after a power cut."""
    pq.write_table(table, path, compression="zstd", compression_level=3)
    fsync(path)
    fsync(path.parent)


def chunks(folder: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """Chunks of 1,000 and of 50,000 rollouts."""
    found: dict[str, object] = {}
    many = 5_000 if chosen.quick else 50_000
    with open_lake(folder / "lake", create=True) as lake:
        numbers = itertools.count()
        for name, n, repetitions in (("1k", 1000, 10 if chosen.quick else 40), ("50k", many, 2 if chosen.quick else 5)):
            table = rows.rollouts(0, n)
            found[name] = {"rollouts": n, **_ratios(lake, table, folder / "raw.parquet", numbers, repetitions)}
        table = rows.rollouts(0, many)
        found |= sizes(table, folder)
    return found


def _ratios(
    lake: Lake, table: pa.Table, path: Path, numbers: itertools.count[int], repetitions: int
) -> dict[str, float]:
    def ours() -> None:
        index = next(numbers)
        staged = write_table(lake.staging / f"{index}.parquet", Rollout, table)
        assert lake.commit(ledger(index), files={"rollouts": [staged]}) is not None

    def by_hand_in_our_encoding() -> None:
        write_table(path, Rollout, table)

    costs = in_turns(
        {"raw": lambda: raw(table, path), "same_encoding": by_hand_in_our_encoding, "lake": ours}, repetitions
    )
    return {
        "cpu_ratio": costs["lake"].cpu_s / costs["raw"].cpu_s,
        "wall_ratio": costs["lake"].wall_s / costs["raw"].wall_s,
        "cpu_ratio_to_same_encoding": costs["lake"].cpu_s / costs["same_encoding"].cpu_s,
        "lake_cpu_s": costs["lake"].cpu_s,
        "raw_cpu_s": costs["raw"].cpu_s,
        "lake_wall_s": costs["lake"].wall_s,
        "raw_wall_s": costs["raw"].wall_s,
    }


def sizes(table: pa.Table, folder: Path) -> dict[str, object]:
    """Bytes a rollout, against zstd as it comes, and by column."""
    ours = write_table(folder / "ours.parquet", Rollout, table)
    pq.write_table(table, folder / "default.parquet", compression="zstd")
    pq.write_table(table, folder / "snappy.parquet")
    by_column: Counter[str] = Counter()
    metadata = pq.read_metadata(ours)
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            by_column[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    n = table.num_rows
    return {
        "size_ratio": ours.stat().st_size / (folder / "default.parquet").stat().st_size,
        "size_ratio_to_snappy": ours.stat().st_size / (folder / "snappy.parquet").stat().st_size,
        "arrow_bytes_per_rollout": table.nbytes / n,
        "bytes_per_rollout": ours.stat().st_size / n,
        "bytes_per_rollout_by_column": {name: size / n for name, size in by_column.most_common(12)},
    }


def one_commit(folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """One file of 1,000 rollouts and the rows of three tables (the ledger's one of them), from staged to committed."""
    table = rows.rollouts(0, 1000)
    small: dict[str, list[Row]] = {
        "scores": [Score(score_id=i, subject_id=i, verdict="pass", value=1.0) for i in range(100)],
        "metrics": [Metric(metric_id=i, name="pass@1", value=0.5, n=9) for i in range(20)],
    }
    with_four: dict[str, list[Row]] = {**small, "decisions": [Decision(decision_id=1, subject_id=1, keep=True)]}
    costs: dict[str, list[tuple[float, float]]] = {"three": [], "four": []}
    with open_lake(folder / "lake", create=True) as lake:
        for index in range(20 if chosen.quick else 150):
            name = "four" if index % 5 == 0 else "three"
            staged = write_table(lake.staging / f"{index}.parquet", Rollout, table)
            given = with_four if name == "four" else small
            cost = timed(lambda: lake.commit(ledger(index), files={"rollouts": [staged]}, rows=given))  # noqa: B023
            costs[name].append((cost.wall_s, cost.cpu_s))
    walls = sorted(wall for wall, _ in costs["three"])
    return {
        "wall_ms": 1000 * walls[0],
        "median_wall_ms": 1000 * walls[len(walls) // 2],
        "cpu_ms": 1000 * min(cpu for _, cpu in costs["three"]),
        "wall_ms_with_a_fourth_table": 1000 * min(wall for wall, _ in costs["four"]),
    }
