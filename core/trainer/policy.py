"""Loads the policy to train, full or with adapters, and hands back what is to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strop.core.trainer.config import Lora, Train
from strop.storage.errors import StageError

ADAPTER = "adapter_config.json"


@dataclass(slots=True)
class Loaded:
    """A policy in memory."""

    model: Any
    """The causal language model, or the one with a score head; adapters, where there are any, sit inside it."""
    wrapper: Any
    """The PEFT wrapper that saves or merges the adapters; None for full weights."""
    tokenizer: Any
    dtype: torch.dtype
    """Type its weights are stored in."""


def load_policy(directory: Path, config: Train, *, device: str, head: str | None = None) -> Loaded:
    """The policy in float32, in train mode; frozen weights stay as stored where arithmetic is bfloat16.

    An unmerged adapter is trained on when the result is one too, else merged first. With the head 'score' it gives one
    number a completion, see `score`.
    Raises StageError: adapters that do not fit.
    """
    from transformers import AutoTokenizer

    lora = config.lora
    keep_dtype = lora is not None and use_bfloat16(config, device)
    wrapper = None
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        if head == "score":
            from strop.core.trainer.score import load_scored

            model, stored = load_scored(directory, tokenizer, keep_dtype=keep_dtype, attention=config.attention)
        elif lora is not None and not lora.merge and (directory / ADAPTER).is_file():
            wrapper, model, stored = load_adapter(directory, lora, keep_dtype, config.attention)
        else:
            model, stored = load_model(directory, keep_dtype=keep_dtype, attention=config.attention)
    model.to(device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    if lora is not None and wrapper is None:
        model.name_or_path = str(directory)  # what a kept adapter names as its base
        wrapper = add_adapters(model, lora, "SEQ_CLS" if head == "score" else "CAUSAL_LM")
    return Loaded(model, wrapper, tokenizer, stored)


def load_model(directory: Path, *, keep_dtype: bool = False, attention: str | None = None) -> tuple[Any, torch.dtype]:
    """The model, in float32 unless its stored type is to be kept, and its stored type. Adapters are merged.

    Raises StageError: an attention that is not installed or not the model's.
    """
    from transformers import AutoModelForCausalLM

    with quiet(), _attention(attention):
        if (directory / ADAPTER).is_file():
            from peft import AutoPeftModelForCausalLM

            adapted = AutoPeftModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation=attention)
            stored: torch.dtype = adapted.get_base_model().dtype
            model: Any = adapted.float().merge_and_unload().requires_grad_(True)
        else:
            model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation=attention)
            stored = model.dtype
    return (model if keep_dtype else model.float()), stored


def load_adapter(
    directory: Path, lora: Lora, keep_dtype: bool, attention: str | None = None
) -> tuple[Any, Any, torch.dtype]:
    """An unmerged adapter to train on: its wrapper, the model it sits in, and the stored type of the weights."""
    from peft import AutoPeftModelForCausalLM

    with _attention(attention):
        wrapper = AutoPeftModelForCausalLM.from_pretrained(
            directory, dtype="auto", is_trainable=True, attn_implementation=attention
        )
    old = wrapper.peft_config["default"]
    if (old.r, old.lora_alpha, old.use_dora) != (lora.r, lora.alpha, lora.dora):
        raise StageError(
            f"the policy is an adapter of r {old.r}, alpha {old.lora_alpha}, dora {old.use_dora}, and train.lora asks "
            f"for r {lora.r}, alpha {lora.alpha}, dora {lora.dora}: write the same, or merge: true"
        )
    model = wrapper.get_base_model()
    stored: torch.dtype = model.dtype
    if not keep_dtype:
        wrapper.float()
    return wrapper, model, stored


def add_adapters(model: Any, lora: Lora, task: str = "CAUSAL_LM") -> Any:
    """Put fresh adapters into the model, in place; all else but a score head is frozen. Returns the PEFT wrapper."""
    from peft import get_peft_model

    try:
        with quiet():
            return get_peft_model(model, lora_config(lora, task))
    except ValueError as error:
        raise StageError(f"train.lora does not fit the policy: {error}") from error


def lora_config(lora: Lora, task: str = "CAUSAL_LM") -> Any:
    """The adapters as PEFT describes them."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=lora.target_modules,
        task_type=task,  # type: ignore[arg-type]  # the name of one of peft's
    )


@contextmanager
def _attention(name: str | None) -> Iterator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        if name is None:
            raise
        raise StageError(f"train.attention {name!r} cannot be used here: {error}") from error


def packs(config: Train, model: Any) -> bool:
    """Whether sequences are packed: where it is asked for, or the attention is one that skips what it masks."""
    if config.packing != "auto":
        return config.packing
    return "flash" in (getattr(model.config, "_attn_implementation", None) or "")


def context_of(model: Any) -> int:
    """Tokens the model reads at most; a number beyond all data where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def use_bfloat16(config: Train, device: str) -> bool:
    """Whether the forward pass runs in bfloat16."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def pick_device() -> str:
    """The accelerator where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, and peft's use of an old name of theirs, off the terminal."""
    import warnings

    from transformers.utils import logging as module

    logging: Any = module
    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
            yield
    finally:
        if was:
            logging.enable_progress_bar()


@contextmanager
def using_threads(n: int) -> Iterator[None]:
    """Compute on that many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
