"""What a training with `ewc` is to keep: a sample of completions, as a table like that of the examples."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Never

from strop.core.imports.lines import Wrong, records, text
from strop.core.seeds import derive
from strop.core.session import Session
from strop.core.trainer.config import Ewc
from strop.core.training_examples import examples_of
from strop.storage.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def kept_sample(session: Session, config: Ewc, round: int, trained: pa.Table, seed: int) -> pa.Table | None:
    """At most as many as the setting says, drawn at random, in their order; None where there is nothing yet to keep.

    Raises DataError, naming file and line, for a file that is absent, empty or malformed.
    """
    if config.sample == "trained":
        found = trained
    elif config.sample == "earlier":
        found = examples_of(session, (1, round - 1), None, None, seed)
    else:
        found = read_sample(session.recipe.folder / Path(config.sample).expanduser())
    count = min(config.examples, found.num_rows)
    if not count:
        return None
    return found.take(sorted(random.Random(derive(seed, "ewc")).sample(range(found.num_rows), count)))


def read_sample(path: Path) -> pa.Table:
    """The lines of a file as SFT rows. Raises DataError as `kept_sample`."""
    import pyarrow as pa

    if not path.is_file():
        raise DataError(f"train.ewc.sample: there is no file {path}")
    rows = []
    for number, record in records(path, _complain):
        try:
            row = {name: text(record, name) for name in ("prompt", "completion")}
        except Wrong as error:
            _complain(path, number, str(error))
        if None in row.values():
            _complain(path, number, "an object with `prompt` and `completion` is expected")
        rows.append({"example_id": number, "kind": "sft", **row})
    if not rows:
        raise DataError(f"{path} is empty: one JSON object a line with `prompt` and `completion` is expected")
    return pa.Table.from_pylist(rows)


def _complain(path: Path, line: int, what: str) -> Never:
    raise DataError(f"{path}:{line}: {what}")
