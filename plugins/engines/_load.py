"""Loads a checkpoint directory for sampling: tokenizer, forward pass, context and end-of-sequence tokens.

A policy that is an adapter is merged into a copy of its base. The base is kept as it was read, so that the next adapter
on it needs no more than its own few weights; a policy of the same shape takes the place of the one before, tensor by
tensor.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from strop.core.trainer.policy import ADAPTER, pick_device, quiet
from strop.plugins.engines._texts import end_tokens
from strop.storage.errors import StageError

if TYPE_CHECKING:
    from strop.plugins.engines._decode import Forward

_NAMES = frozenset({"_name_or_path", "transformers_version", "dtype"})
"""Entries of a config that say nothing of the shape."""


@dataclass(frozen=True, slots=True)
class Base:
    """What adapters belong to, untouched, in main memory."""

    name: str
    """As the adapters name it."""
    model: Any


@dataclass(slots=True)
class Loaded:
    """A policy ready to sample."""

    model: Forward | None
    """None once it is closed."""
    tokenizer: Any
    context: int
    """Longest sequence, in tokens."""
    eos: Tensor
    """[1..] tokens that end a completion, on the model's device."""
    token_bytes: int
    """Bytes of keys and values a token takes."""
    width: int
    """See `Forward`."""
    shape: dict[str, Any]
    """The config, less names."""
    base: Base | None
    """Where the policy is an adapter, or the base of the one before it."""


def load(directory: Path, *, device: str, dtype: str, lean: bool, before: Loaded | None = None) -> Loaded:
    """The policy on the device, in eval mode; `before` is used up, for what of it can stay.

    Raises StageError: an adapter whose base is missing.
    """
    from transformers import AutoTokenizer

    device = pick_device() if device == "auto" else device
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model, base = _weights(directory, before.base if before else None, len(tokenizer))
    model.to(dtype=_dtype(device, dtype)).eval()
    shape = {key: value for key, value in model.config.to_dict().items() if key not in _NAMES}
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    length = int(min(context, tokenizer.model_max_length, 1 << 30))
    forward = before.model if before else None
    if forward is not None and before is not None and before.shape == shape:
        forward.load(model)
    else:
        if before is not None:  # its memory is needed for the next
            before.model = forward = None
        forward = _forward(model.to(device=device), lean and device != "mps", length)
    ends = (getattr(source, "eos_token_id", None) for source in (tokenizer, model.generation_config, model.config))
    eos = torch.tensor(end_tokens(*ends), device=device)
    return Loaded(forward, tokenizer, length, eos, _token_bytes(model), forward.width, shape, base)


def _weights(directory: Path, kept: Base | None, tokens: int) -> tuple[Any, Base | None]:
    """The policy's model in main memory, adapters merged, and the base to keep."""
    from transformers import AutoModelForCausalLM

    file = directory / ADAPTER
    if not file.is_file():
        if kept is not None and Path(kept.name) == directory:
            return copy.deepcopy(kept.model), kept
        return AutoModelForCausalLM.from_pretrained(directory, dtype="auto"), None
    from peft import PeftModel

    name = json.loads(file.read_text())["base_model_name_or_path"]
    if kept is None or kept.name != name:
        try:
            kept = Base(name, AutoModelForCausalLM.from_pretrained(name, dtype="auto"))
        except OSError as error:
            raise StageError(f"{file} names the base policy {name!r}, which cannot be loaded: {error}") from error
    base = copy.deepcopy(kept.model)
    if tokens > base.get_input_embeddings().num_embeddings:  # the adapter came with tokens of its own
        base.resize_token_embeddings(tokens)
    adapted = PeftModel.from_pretrained(base, directory)
    return adapted.float().merge_and_unload(), kept  # type: ignore[operator]


def _forward(model: Any, lean: bool, context: int) -> Forward:
    """The lean forward pass, where it is wanted and gives the model's own logits."""
    from strop.plugins.engines._llama import Llama, fits
    from strop.plugins.engines._modules import Modules

    if not lean or not fits(model):
        return Modules(model, context)
    found = Llama(model)
    with torch.inference_mode():
        ids = torch.arange(2, 10, device=model.device).remainder(model.config.vocab_size)[None]
        own = model(input_ids=ids, use_cache=False).logits.float()
        first, cache = found.prefill(ids[:, :-1], None, 1)
        mine = torch.stack([first, found.step(ids[:, -1], cache)], 1).float()
        tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
        close = torch.allclose(mine, own[:, -2:], atol=tolerance * max(1.0, float(own.abs().max())), equal_nan=True)
    return found if close else Modules(model, context)


def _token_bytes(model: Any) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * shared * size * model.dtype.itemsize)


def _dtype(device: str, name: str) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float16
