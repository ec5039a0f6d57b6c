"""A causal language model in Hugging Face format: a local directory as it lies, or a repository of the hub.

Source: the checkpoint format of transformers, Wolf et al. 2020, 1910.03771.
Weights are read as safetensors alone, so that no pickle is ever run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from strop.core.plugin import Config, stage
from strop.storage.errors import StropError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*"]


class Huggingface(Config):
    """Which model."""

    model: str
    """A directory (`./my-model`, `/models/x`), or a hub id (`Qwen/Qwen3-0.6B`)."""
    revision: str | None = None
    """Commit, branch or tag of a hub id; null = its main branch."""


@stage("base")
def huggingface(config: Huggingface, *, directory: Path, progress: Callable[[str, int, int], None]) -> Path:
    """The local directory itself, unchanged and uncopied, or `directory` with the hub's files.

    Raises StropError naming what a directory lacks, or why a download failed.
    """
    local = Path(config.model).expanduser()
    if local.is_dir():
        if config.revision is not None:
            raise StropError(f"base huggingface: {local} is a directory, which has no revision {config.revision!r}")
        _check(local)
        return local.resolve()
    if config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
        raise StropError(f"base huggingface: there is no directory {local}, and a hub id has the form 'owner/name'")
    from huggingface_hub import snapshot_download

    progress("downloading", 0, 1)
    try:
        snapshot_download(config.model, revision=config.revision, local_dir=directory, allow_patterns=_PATTERNS)
    except Exception as error:
        at = f" at {config.revision!r}" if config.revision else ""
        raise StropError(
            f"base huggingface: {config.model!r}{at} is no directory here, and the hub did not give it: {error}"
        ) from error
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    _check(directory)
    progress("downloading", 1, 1)
    return directory


def _check(directory: Path) -> None:
    files = {p.name for p in directory.iterdir()}
    missing = []
    if not files & {"config.json", "adapter_config.json"}:
        missing.append("config.json")
    if not files & set(_TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json)")
    if not any(name.endswith(".safetensors") for name in files):
        missing.append("weights (*.safetensors)")
    if missing:
        raise StropError(f"base huggingface: {directory} is no complete model: it lacks {' and '.join(missing)}")
