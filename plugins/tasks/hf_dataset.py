"""Problems from a Hugging Face data set: a Parquet, CSV or JSON file, a folder of them, one saved to disk, or a name.

Source: the `datasets` library, Lhoest et al. 2021, 2109.02846. A `path` is read without the network, a `dataset` from
the Hub or its cache. The task has neither a generator nor a scorer: verify with `answer` or `math`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from strop.core.plugin import Task, stage
from strop.plugins.tasks._records import Fields, held_out_apart, held_out_by_share, problem
from strop.storage.errors import DataError, did_you_mean
from strop.storage.tables import Problem

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


class HfDataset(Fields):
    """Which data set, and the names of its fields."""

    path: Path | None = None
    """File or folder; a relative path starts at the recipe's folder, or at the working directory outside a recipe."""
    dataset: str | None = None
    """Name of a data set on the Hub or in its cache, e.g. `openai/gsm8k`; this or `path`."""
    configuration: str | None = None
    """Which of the data set's configurations, where it has several."""
    split: str = "train"
    """Split to take the problems from; slices such as `train[:100]` are not for data sets saved to disk."""
    heldout_split: str | None = None
    """Split whose problems are the held-out ones."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give `path` (a file or folder) or `dataset` (a name), one of the two")
        return self


@stage("task")
def hf_dataset(config: HfDataset) -> Task:
    """The task. Raises DataError for a data set that cannot be read, and for a row, by number, that does not fit."""
    train = _read(config, config.split)
    if config.heldout_split is None:
        problems = held_out_by_share(train, config.heldout, _name(config))
    else:
        problems = held_out_apart(train, _read(config, config.heldout_split), _name(config))
    return Task(problems=lambda: list(problems))


def _name(config: HfDataset) -> str:
    return str(config.path or config.dataset)


def _read(config: HfDataset, split: str) -> list[Problem]:
    try:
        rows = _load(config, split)
    except Exception as error:
        raise DataError(f"cannot read {_name(config)}, split {split!r}: {type(error).__name__}: {error}") from error
    found = [problem(row, f"{_name(config)} ({split}), row {i}", config) for i, row in enumerate(rows)]
    if not found:
        raise DataError(f"{_name(config)} ({split}) is empty")
    return found


def _load(config: HfDataset, split: str) -> Dataset:
    from datasets import load_dataset, load_from_disk

    path = config.path
    if path is None:
        return load_dataset(config.dataset, config.configuration, split=split)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _split_of(load_from_disk(str(path)), split)
    if path.is_dir():
        return load_dataset(str(path), config.configuration, split=split)
    if not path.is_file():
        raise ValueError(f"there is no such file or folder (working directory: {Path.cwd()})")
    if path.suffix not in _FORMATS:
        raise ValueError(f"a file must end in one of {', '.join(_FORMATS)}")
    return load_dataset(_FORMATS[path.suffix], data_files={split: str(path)}, split=split)


def _split_of(saved: Dataset | DatasetDict, split: str) -> Dataset:
    from datasets import DatasetDict

    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise ValueError(f"no split {split!r}{did_you_mean(split, saved)}")
    return saved[split]
