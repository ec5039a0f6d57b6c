"""A frozen policy's log-probabilities of every item: those that came along, and the rest, computed here.

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
from strop.core.trainer.logps import Reader
from strop.core.trainer.loss import Reference, reference_logps
from strop.storage.durable import fsync

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.core.trainer.job import TrainJob


def frozen_logps(
    job: TrainJob, policy: str, items: Sequence[Item], load: Callable[[], Reader], *, micro_batch_tokens: int
) -> Reference:
    """All of them; the `policy`, 'reference' or 'old', is loaded, by `load`, only where some are missing.

    What comes along with the examples is the reference's.
    """
    kept = _read(job, policy)
    came = policy == "reference"
    found = {
        (i, s): logps if came else None for i, item in enumerate(items) for s, logps in enumerate(item.reference_logps)
    }
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


def _names(item: Item) -> tuple[str, ...]:
    return sides(pair=len(item.sequences) == 2)


def _masked(item: Item, side: int, logps: FloatArray | None) -> FloatArray:
    assert logps is not None
    return logps * item.sequences[side].mask


def _write(job: TrainJob, policy: str, items: Sequence[Item], computed: Reference) -> None:
    """Those of whole completions: where the loss covers a part, the rest is not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (item.example_id, name, logps)
        for item, sides in zip(items, computed.logps, strict=True)
        for name, logps, sequence in zip(_names(item), sides, item.sequences, strict=True)
        if sequence.mask.all()
    ]
    columns = {
        "example_id": pa.array([id for id, _, _ in rows], pa.int64()),
        "side": pa.array([side for _, side, _ in rows], pa.string()),
        "logps": pa.array([logps for _, _, logps in rows], pa.list_(pa.float32())),
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
    return {(id, side): np.asarray(logps, dtype=np.float32) for id, side, logps in computed_logps(job.work, policy)}


def computed_logps(work: Path, policy: str) -> list[tuple[int, str, list[float]]]:
    """Example id, side and log-probabilities of what a training whose folder this is computed of the policy."""
    import pyarrow.parquet as pq

    path = work / f"{policy}.parquet"
    if not path.is_file():
        return []
    table = pq.read_table(path)
    return list(zip(*(table.column(name).to_pylist() for name in ("example_id", "side", "logps")), strict=True))
