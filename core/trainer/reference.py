"""A frozen policy's log-probabilities of every item: those that came along, and the rest, computed here.

Or whatever else a frozen model gives each token.

What is computed is kept in the job's folder, for a training that goes on after a kill and for the lake, where the next
training with this reference finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from strop.core.trainer.encode import FloatArray, Item
from strop.core.trainer.job import sides
from strop.core.trainer.loss import Numbers, Reference, reference_logps
from strop.storage.durable import fsync

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.core.trainer.job import TrainJob

COMPUTED = ("example_id", "side", "logps", "whole")
"""Columns of the file."""
SCORERS = ("scorer", "scorer_reference")
"""In the order of `Item.scorer_logps`."""


def frozen_logps(
    job: TrainJob, policy: str, items: Sequence[Item], load: Callable[[], Numbers], *, micro_batch_tokens: int
) -> Reference:
    """All of them; the `policy` ('reference', 'old', ...) is loaded, by `load`, only where some are missing."""
    kept = _read(job, policy)
    found = {(i, s): logps for i, item in enumerate(items) for s, logps in enumerate(_came(item, policy))}
    for at, item in enumerate(items):
        for side, name in enumerate(_names(item)):
            found[at, side] = kept.get((item.example_id, name), found[at, side])
    lacking = [i for i, item in enumerate(items) if any(found[i, s] is None for s in range(len(item.sequences)))]
    if lacking:
        read = load()
        computed = reference_logps([items[i] for i in lacking], read, micro_batch_tokens=micro_batch_tokens)
        found.update(
            {(i, s): logps for i, sides in zip(lacking, computed.logps, strict=True) for s, logps in enumerate(sides)}
        )
        if read.ranks.first:
            _write(job, policy, [items[i] for i in lacking], computed)
    logps = [tuple(_masked(item, s, found[i, s]) for s in range(len(item.sequences))) for i, item in enumerate(items)]
    return Reference(logps)


def _came(item: Item, policy: str) -> tuple[FloatArray | None, ...]:
    """What came along with the example."""
    if policy == "reference":
        return item.reference_logps
    if policy in SCORERS:
        return (item.scorer_logps[SCORERS.index(policy)],)
    return (None,) * len(item.sequences)


def _names(item: Item) -> tuple[str, ...]:
    return sides(pair=len(item.sequences) == 2)


def _masked(item: Item, side: int, logps: FloatArray | None) -> FloatArray:
    assert logps is not None
    return logps * item.sequences[side].mask


def _write(job: TrainJob, policy: str, items: Sequence[Item], computed: Reference) -> None:
    """`whole` says which are of all tokens: where the loss covers a part, the rest is not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (item.example_id, name, logps, bool(sequence.mask.all()))
        for item, sides in zip(items, computed.logps, strict=True)
        for name, logps, sequence in zip(_names(item), sides, item.sequences, strict=True)
    ]
    types = (pa.int64(), pa.string(), pa.list_(pa.float32()), pa.bool_())
    columns = {
        name: pa.array([row[at] for row in rows], kind)
        for at, (name, kind) in enumerate(zip(COMPUTED, types, strict=True))
    }
    job.work.mkdir(parents=True, exist_ok=True)
    partial = job.work / f"{policy}.parquet.partial"
    pq.write_table(pa.table(columns).replace_schema_metadata({"key": job.key()}), partial)
    fsync(partial)
    partial.replace(job.work / f"{policy}.parquet")


def _read(job: TrainJob, policy: str) -> dict[tuple[int, str], FloatArray]:
    """What this very job computed before it was killed."""
    import pyarrow.parquet as pq

    path = job.work / f"{policy}.parquet"
    if not path.is_file():
        return {}
    if (pq.read_schema(path).metadata or {}).get(b"key", b"").decode() != job.key():
        return {}
    return {(id, side): np.asarray(logps, dtype=np.float32) for id, side, logps, _ in _rows(path)}


def computed_logps(work: Path, policy: str) -> list[tuple[int, str, list[float]]]:
    """Example id, side and log-probabilities of what a training whose folder this is computed of the policy.

    Of whole completions only.
    """
    path = work / f"{policy}.parquet"
    return [(id, side, logps) for id, side, logps, whole in _rows(path) if whole] if path.is_file() else []


def _rows(path: Path) -> list[tuple[int, str, list[float], bool]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return list(zip(*(table.column(name).to_pylist() for name in COMPUTED), strict=True))
