"""Random Llamas of a few thousand parameters: real models, small enough for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_llama(
    directory: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    change: Callable[[Any], None] = lambda model: None,
    **shape: Any,
) -> Path:
    """Write one of this configuration, without a tokenizer; `change` is handed the model first and alters it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | shape)).eval()
    with torch.no_grad():
        change(model)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def write_character_llama(directory: Path, context: int, **more: Any) -> Path:
    """One that reads the characters of the built-in base policy, with the tokenizer; see `write_llama`."""
    from strop.core.chars import VOCABULARY, character_tokenizer

    eos = VOCABULARY.index("<eos>")
    write_llama(directory, max_position_embeddings=context, eos_token_id=eos, **more)
    character_tokenizer(context).save_pretrained(directory)
    return directory
