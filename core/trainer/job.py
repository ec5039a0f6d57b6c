"""What a trainer process is told and what it gives back: a job, its file of examples, and a result. Imports no torch.

The file is Parquet, one row an example, so that a job can be kept, looked at with SQL and run again by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.storage.durable import fsync
from strop.storage.errors import StageError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("sft", "pair", "group")

COLUMNS: dict[str, str] = {
    "example_id": "int64",
    "kind": "string",
    "prompt": "string",
    "completion": "string",
    "chosen": "string",
    "rejected": "string",
    "completion_token_ids": "list<int32>",
    "chosen_token_ids": "list<int32>",
    "rejected_token_ids": "list<int32>",
    "behaviour_logps": "list<float>",
    "completion_reference_logps": "list<float>",
    "chosen_reference_logps": "list<float>",
    "rejected_reference_logps": "list<float>",
    "completion_scorer_logps": "list<float>",
    "completion_scorer_reference_logps": "list<float>",
    "reward": "double",
    "group_id": "int64",
    "weight": "double",
    "margin": "double",
    "loss_spans": "list<int32>",
    "stratum": "int64",
}
"""Column -> Arrow type. Token ids are used exactly as given; where null, the text is tokenised and ended with EOS.
Log-probabilities under frozen policies that are null are computed before the first step."""

FROZEN = {
    "reference": ("completion", "chosen", "rejected"),
    "scorer": ("completion",),
    "scorer_reference": ("completion",),
}
"""Frozen policies, the implicit reward model that scores tokens and its reference among them, and the sides of an
example that may bring their log-probabilities along, in the column `<side>_<policy>_logps`."""


@dataclass(frozen=True, slots=True)
class TokenScorer:
    """The reward model that scores tokens, for an objective that requires it."""

    model: Path
    """Its directory."""
    reference: Path | None = None
    """Directory of the reference of an implicit one; None: it has a head that gives one number a token."""
    beta: float = 1.0
    """Of an implicit one: its reward for a log-ratio of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """All that one training needs. The same job gives the same weights, bit for bit, on CPU."""

    init: Path
    """Directory of the policy to start from."""
    reference: Path | None = None
    """Directory of the reference policy, when the objective's mark requires one."""
    scorer: TokenScorer | None = None
    """When the objective's mark requires 'token_scores'."""
    examples: Path
    """Parquet file as `write_examples` writes it."""
    kept: Path | None = None
    """Such a file of what `train.ewc` is to keep; None where there is nothing."""
    output: Path
    """Directory to write the new policy to; must not exist yet."""
    work: Path
    """Directory of the trainer's own checkpoints, kept until the output is complete."""
    objective: str
    """Name of the objective plugin, as the registry gave it."""
    objective_origin: str = "built-in"
    """`Plugin.origin`: the file's path for a local plugin."""
    objective_config: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    """The `Train` config as a mapping."""
    seed: int
    """Order of the data and every other random choice."""
    threads: int = 1
    """CPU threads, where the config does not say."""

    track: tuple[str, ...] = ()
    """Where the steps are shown: 'tensorboard', 'wandb', 'mlflow'."""
    title: str = "run/r0"
    """The run and its round, as they are called there."""
    logs: Path = Path("logs")
    """Folder for what they write."""

    def key(self) -> str:
        """Fingerprint of all that decides the weights; a checkpoint of another job is never continued."""
        parts = dataclasses.asdict(self)
        for name in ("output", "work", "track", "title", "logs"):
            del parts[name]
        for name, path in (("examples", self.examples), ("kept", self.kept)):
            parts[name] = path and hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training did. `seconds` counts the last process only, where one was killed and continued."""

    output: Path
    kind: str
    """'full' or 'lora' (an adapter kept unmerged)."""
    steps: int
    examples: int
    tokens: int
    """Target tokens over all epochs."""
    loss: float
    """Mean over the last tenth of the steps."""
    seconds: float
    metrics: list[dict[str, float]]
    """Per optimiser step: step, loss, lr, grad_norm, tokens, and what the objective reports."""
    held_back: list[int] = field(default_factory=list)
    """Ids of the examples that were looked at and not trained on."""


def result_of(
    job: TrainJob,
    metrics: list[dict[str, float]],
    *,
    adapters: bool,
    examples: int,
    tokens: int,
    started: float,
    held_back: Sequence[int] = (),
) -> TrainResult:
    """What a training that took these steps did; `adapters`: they alone are saved. `started`: monotonic, in seconds."""
    tail = metrics[-max(1, math.ceil(len(metrics) / 10)) :]
    return TrainResult(
        output=job.output,
        kind="lora" if adapters else "full",
        steps=len(metrics),
        examples=examples,
        tokens=tokens,
        loss=sum(m["loss"] for m in tail) / len(tail),
        seconds=time.monotonic() - started,
        metrics=metrics,
        held_back=list(held_back),
    )


def sides(*, pair: bool) -> tuple[str, ...]:
    """What an example's completions are called, in the order of its sequences."""
    return ("chosen", "rejected") if pair else ("completion",)


def arrow_schema() -> pa.Schema:
    """The types of the examples file."""
    import pyarrow as pa

    types = {"list<int32>": pa.list_(pa.int32()), "list<float>": pa.list_(pa.float32())}
    return pa.schema([(name, types.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])


def write_examples(path: Path, examples: pa.Table | Sequence[Mapping[str, Any]]) -> Path:
    """Write the examples file: columns not given are null, types are cast. Raises StageError as `check_examples`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema()
    if not isinstance(examples, pa.Table):
        named = sorted({name for row in examples for name in row})
        examples = pa.table({name: pa.array([row.get(name) for row in examples]) for name in named})
    for name in examples.column_names:
        if name not in COLUMNS:
            raise StageError(f"examples have no column {name!r}{did_you_mean(name, COLUMNS)}")
    given = set(examples.column_names)
    table = pa.table(
        {
            f.name: examples[f.name].cast(f.type) if f.name in given else pa.nulls(examples.num_rows, f.type)
            for f in schema
        },
        schema=schema,
    )
    check_examples(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    fsync(partial)
    partial.replace(path)
    return path


def read_examples(path: Path) -> pa.Table:
    """The examples file as it was written. Raises StageError when it is not one."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise StageError(f"{path} lacks the columns {', '.join(missing)}: write it with `write_examples`")
    return table.select(list(COLUMNS)).cast(arrow_schema())


def check_examples(table: pa.Table, *, kind: str | None = None, needs: Collection[str] = (), who: str = "") -> None:
    """Raise StageError, naming the rows, where a value that training needs is missing or senseless.

    `kind` and `needs` are what the objective `who` declares; without them only what every objective needs is checked.
    """
    if table.num_rows == 0:
        raise StageError(
            "there are no examples to train on: the filter kept no rollout or the builder made nothing of them; "
            "see `decisions` for the reasons, or sample more problems"
        )
    rows = table.to_pylist()

    def refuse(bad: list[dict[str, Any]], what: str) -> None:
        if bad:
            raise StageError(f"{what} (example ids {name_ids([row['example_id'] for row in bad])})")

    if any(row["example_id"] is None for row in rows):
        raise StageError("every example needs an example_id")
    refuse([r for r in rows if r["kind"] not in KINDS], f"the kind of an example is one of {', '.join(KINDS)}")
    if kind is not None:
        refuse(
            [r for r in rows if r["kind"] != kind],
            f"objective {who!r} learns from {kind!r} examples, these are not: change `build` or `objective`",
        )
    refuse([r for r in rows if r["prompt"] is None], "an example needs a prompt")
    for name, kinds in (("completion", ("sft", "group")), ("chosen", ("pair",)), ("rejected", ("pair",))):
        refuse(
            [r for r in rows if r["kind"] in kinds and r[name] is None and r[f"{name}_token_ids"] is None],
            f"these examples have no {name!r}",
        )
    refuse([r for r in rows if r["kind"] == "pair" and r["loss_spans"]], "loss_spans are for 'sft' and 'group' only")
    refuse([r for r in rows if r["kind"] == "group" and r["group_id"] is None], "a 'group' example needs a group_id")
    refuse([r for r in rows if r["weight"] is not None and not abs(r["weight"]) < 1e30], "the weight is not a number")
    refuse(
        [r for r in rows if r["behaviour_logps"] and len(r["behaviour_logps"]) != len(r["completion_token_ids"] or ())],
        "behaviour_logps must have one entry for each of completion_token_ids",
    )
    for side, name in [(side, f"{side}_{policy}_logps") for policy, sides in FROZEN.items() for side in sides]:
        refuse(
            [r for r in rows if r[name] is not None and len(r[name]) != len(r[f"{side}_token_ids"] or ())],
            f"{name} must have one entry for each of {side}_token_ids",
        )
    for name in needs:
        refuse(
            [r for r in rows if r[name] is None],
            f"objective {who!r} needs the column {name!r}, which is null in these examples",
        )


def name_ids(ids: Sequence[int], shown: int = 5) -> str:
    """'3, 5, 8' or '3, 5, 8, 9, 12 and 40 more'."""
    text = ", ".join(map(str, ids[:shown]))
    return text if len(ids) <= shown else f"{text} and {len(ids) - shown} more"
