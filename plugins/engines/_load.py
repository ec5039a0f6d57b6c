"""Loads a checkpoint directory for sampling: tokenizer, forward pass, context and end-of-sequence tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from strop.core.trainer.policy import load_model, pick_device, quiet

if TYPE_CHECKING:
    from strop.plugins.engines._decode import Forward


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy ready to sample."""

    model: Forward
    tokenizer: Any
    context: int
    """Longest sequence, in tokens."""
    eos: Tensor
    """[1..] tokens that end a completion, on the model's device."""
    token_bytes: int
    """Bytes of keys and values a token takes."""


def load(directory: Path, *, device: str, dtype: str, lean: bool) -> Loaded:
    """The policy on the device, in eval mode."""
    from transformers import AutoTokenizer

    from strop.plugins.engines._modules import Modules

    device = pick_device() if device == "auto" else device
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory)
    model, _ = load_model(directory, keep_dtype=True)
    model.to(device=device, dtype=_dtype(device, dtype)).eval()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    length = int(min(context, tokenizer.model_max_length, 1 << 30))
    forward: Forward | None = _lean(model) if lean and device != "mps" else None
    eos = torch.tensor(_end_tokens(model, tokenizer), device=device)
    return Loaded(forward or Modules(model, length), tokenizer, length, eos, _token_bytes(model))


def _lean(model: Any) -> Forward | None:
    """The lean forward pass, where it gives the model's own logits."""
    from strop.plugins.engines._llama import Llama, fits

    if not fits(model):
        return None
    lean = Llama(model)
    with torch.inference_mode():
        ids = torch.arange(2, 10, device=model.device).remainder(model.config.vocab_size)[None]
        own = model(input_ids=ids, use_cache=False).logits.float()
        first, cache = lean.prefill(ids[:, :-1], None, 1)
        mine = torch.stack([first, lean.step(ids[:, -1], cache)], 1).float()
        tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
        if not torch.allclose(mine, own[:, -2:], atol=tolerance * max(1.0, float(own.abs().max())), equal_nan=True):
            return None
    return lean


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


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """What the tokenizer, the generation config and the config each call end of sequence."""
    found: set[int] = set()
    for source in (tokenizer, model.generation_config, model.config):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return sorted(found)
