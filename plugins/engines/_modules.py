"""Any causal language model through transformers' own modules and cache: slower than `_llama`, and general."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from strop.storage.errors import StageError


class Modules:
    """A transformers model under the interface of `_llama.Llama`."""

    def __init__(self, model: Any, context: int) -> None:
        self.model, self.context = model, context
        config = model.config.get_text_config()
        self.width: int = max(config.vocab_size, 8 * config.hidden_size)
        accepted = inspect.signature(model.forward).parameters
        self.positions = "position_ids" in accepted
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def prefill(self, ids: Tensor, first: Tensor | None, room: int) -> tuple[Tensor, Cache]:
        """Logits [B, V] after each prompt, padded on the left, and its cache."""
        mask = torch.ones_like(ids)
        if first is not None:
            mask = (torch.arange(ids.shape[1], device=ids.device) >= first[:, None]).long()
        given: dict[str, Any] = {"position_ids": (mask.cumsum(1) - 1).clamp_(min=0)} if self.positions else {}
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **given, **self.last)
        return out.logits[:, -1], Cache(out.past_key_values, mask)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] after one more token each."""
        cache.mask = torch.cat([cache.mask, cache.mask.new_ones(len(tokens), 1)], 1)
        given: dict[str, Any] = {}
        if self.positions:  # a row that has ended and is not yet dropped may be past the last position
            given["position_ids"] = (cache.mask.sum(1, keepdim=True) - 1).clamp_(max=self.context - 1)
        out = self.model(
            input_ids=tokens[:, None], attention_mask=cache.mask, past_key_values=cache.states, use_cache=True, **given
        )
        cache.states = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits

    def logits(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, T, V] of whole sequences, padded on the right; [B, V] after one column `at` [B] of each."""
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits if at is None else logits[torch.arange(len(ids), device=ids.device), at]

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, T, E] what the head is given, of whole sequences, padded on the right."""
        states: Tensor = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def load(self, model: Any) -> None:
        """Take the weights of another model of this shape."""
        self.model.load_state_dict(model.state_dict())


@dataclass(slots=True)
class Cache:
    """transformers' cache and the attention mask that goes with it."""

    states: Any
    mask: Tensor
    """[B, T] 0 on padding."""

    def select(self, rows: Tensor) -> Self:
        """The cache of these rows, a row as often as it is named. The old one is used up."""
        if not hasattr(self.states, "batch_select_indices"):
            raise StageError(
                f"the hf engine cannot share a {type(self.states).__name__} among samples: "
                "sample this architecture with the vllm engine"
            )
        self.states.batch_select_indices(rows)
        self.mask = self.mask[rows]
        return self
