"""A lean forward pass for Llama-shaped models: fused matrices, a preallocated cache, few and large operations.

On a small model most time goes to the number of operations, not to arithmetic. So q/k/v are one matrix and gate/up
another, norm weights and the attention scale are folded into them, rotary embedding is one complex product (pairs lie
side by side after a permutation of the rows), and query heads that share a key are one batched product.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

_TYPES = ("llama", "qwen2", "qwen3")
_ROPE = ("default", "linear", "llama3")
_GROWTH = 64
_ELEMENTS = 1 << 25
"""Numbers of prompts computed at a time: 128 MB in float32."""


@dataclass(slots=True)
class _Layer:
    qkv: Tensor
    """[E, G (R + 2) D]: for each group its R query heads, its key, its value"""
    qkv_bias: Tensor | None
    out: Tensor
    """[H D, E]"""
    gate_up: Tensor
    """[E, 2 M]"""
    down: Tensor
    """[M, E]"""
    qk_norm: Tensor | None
    """[R + 1, D]"""


class Llama:
    """The weights; stateless but for them."""

    def __init__(self, model: Any) -> None:
        """Takes the weights of a transformers model that `fits`."""
        config = model.config
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps: float = config.rms_norm_eps
        self.embedding: Tensor = model.model.embed_tokens.weight.detach()
        self.final: Tensor = model.model.norm.weight.detach()
        self.head = _folded(model.lm_head.weight, self.final)
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.width = max(self.head.shape[1], self.layers[0].gate_up.shape[1], self.layers[0].qkv.shape[1])
        self.root_eps = torch.tensor(self.eps**0.5)
        rotary = model.model.rotary_emb
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), rotary.inv_freq.float().cpu())
        turns = torch.polar(torch.full_like(angles, float(rotary.attention_scaling)), angles)
        self.turns = turns.to(self.embedding.device)
        """[positions, D / 2] complex"""

    def load(self, model: Any) -> None:
        """Take the weights of another model of this shape, in the memory of these."""
        self.embedding.copy_(model.model.embed_tokens.weight.detach())
        self.final.copy_(model.model.norm.weight.detach())
        self.head.copy_(_folded(model.lm_head.weight, model.model.norm.weight))
        for mine, theirs in zip(self.layers, model.model.layers, strict=True):
            found = self._layer(theirs)
            for field in fields(_Layer):
                if getattr(mine, field.name) is not None:
                    getattr(mine, field.name).copy_(getattr(found, field.name))

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        scale = self.dim**-0.5
        normed = getattr(attention, "q_norm", None) is not None
        order = torch.arange(self.dim).view(2, -1).T.flatten().to(attention.q_proj.weight.device)

        def grouped(name: str) -> Tensor:
            q, k, v = (getattr(getattr(attention, f"{p}_proj"), name).detach() for p in "qkv")
            q, k, v = (x.view(self.groups, -1, self.dim, *x.shape[1:]) for x in (q, k, v))
            q, k = q[:, :, order] * (1.0 if normed else scale), k[:, :, order]
            return torch.cat([q, k, v], 1).flatten(0, 2)

        norms = None
        if normed:
            q, k = attention.q_norm.weight.detach()[order] * scale, attention.k_norm.weight.detach()[order]
            norms = torch.cat([q.expand(self.heads // self.groups, -1), k[None]])
        return _Layer(
            _folded(grouped("weight"), layer.input_layernorm.weight),
            grouped("bias") if attention.q_proj.bias is not None else None,
            attention.o_proj.weight.detach().T.contiguous(),
            _folded(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), layer.post_attention_layernorm.weight),
            mlp.down_proj.weight.detach().T.contiguous(),
            norms,
        )

    def _norm(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 and x.device.type == "cpu":  # three operations where torch's own takes six
            size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
            return x / torch.hypot(size, self.root_eps)
        return F.rms_norm(x, (x.shape[-1],), None, self.eps)

    def _turned(self, turns: Tensor) -> Tensor:
        """[N, 1, R + 2, D / 2] how queries, key and value are turned by `turns` [N, D / 2]: a value is not."""
        turns = turns[:, None, None]
        return torch.cat([turns.expand(-1, -1, self.heads // self.groups + 1, -1), torch.ones_like(turns)], 2)

    def _qkv(self, layer: _Layer, x: Tensor, turns: Tensor) -> Tensor:
        """Queries, key and value [N, G, R + 2, D] of rows x [N, E], turned by `turns` [N or 1, 1, R + 2, D / 2]."""
        x = self._norm(x)
        rows = x @ layer.qkv if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, x, layer.qkv)
        rows = rows.view(len(x), self.groups, -1, self.dim)
        if layer.qk_norm is not None:
            rows[:, :, :-1] = self._norm(rows[:, :, :-1]) * layer.qk_norm
        pairs = rows.float().view(*rows.shape[:-1], -1, 2)
        torch.view_as_complex(pairs).mul_(turns)
        return pairs.flatten(-2).to(x.dtype)

    def _mlp(self, layer: _Layer, x: Tensor) -> None:
        gate, up = (self._norm(x) @ layer.gate_up).chunk(2, -1)
        x.addmm_(F.silu(gate).mul_(up), layer.down)

    def _full(self, ids: Tensor, first: Tensor | None, cache: Cache | None = None, at: int = 0) -> Tensor:
        """[B, T, E] of whole sequences; row b begins at column first[b], all at 0 where it is None.

        They are the cache's rows from `at` on.
        """
        rows, width = ids.shape
        columns = torch.arange(width, device=ids.device)
        position = columns.expand(rows, width) if first is None else (columns - first[:, None]).clamp_(min=0)
        turns = self._turned(self.turns[position.flatten()])
        allowed = None
        if first is not None:
            causal = columns[:, None] >= columns
            allowed = causal & ((columns >= first[:, None])[:, None, :] | torch.eye(width, device=ids.device).bool())
            allowed = allowed[:, None]
        x = self.embedding[ids.flatten()]
        for index, layer in enumerate(self.layers):
            found = self._qkv(layer, x, turns).view(rows, width, self.groups, -1, self.dim).permute(3, 0, 2, 1, 4)
            q = found[:-2].permute(1, 2, 0, 3, 4).flatten(1, 2)
            if cache is not None:
                kept = cache.states[index].view(2, -1, self.groups, cache.room, self.dim)
                kept[:, at : at + rows, :, :width] = found[-2:]
            seen = F.scaled_dot_product_attention(
                q,
                found[-2],
                found[-1],
                attn_mask=allowed,
                is_causal=allowed is None,
                scale=1.0,
                enable_gqa=self.heads > self.groups,
            )
            x.addmm_(seen.transpose(1, 2).reshape(rows * width, -1), layer.out)
            self._mlp(layer, x)
        return x.view(rows, width, -1)

    def prefill(self, ids: Tensor, first: Tensor | None, room: int) -> tuple[Tensor, Cache]:
        """Logits [B, V] after each prompt, padded on the left, and its cache with room for so many more tokens."""
        cache = Cache(self, len(ids), ids.shape[1], first, room)
        rows = max(1, _ELEMENTS // (ids.shape[1] * self.width))
        last = [
            self._full(ids[at : at + rows], None if first is None else first[at : at + rows], cache, at)[:, -1]
            for at in range(0, len(ids), rows)
        ]
        return self._norm(torch.cat(last)) @ self.head, cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] after one more token each."""
        cache.reserve()
        at, first = cache.width, cache.first
        last = len(self.turns) - 1  # a row that has ended and is not yet dropped may be past it
        if first is None:
            turns, hidden = self._turned(self.turns[min(at, last)][None]), None
        else:
            turns = self._turned(self.turns[(at - first).clamp_(max=last)])
            hidden = torch.arange(at + 1, device=tokens.device) < first[:, None]
            hidden = hidden[:, None, None].expand(-1, self.groups, 1, -1).flatten(0, 1)
        x = self.embedding.index_select(0, tokens)
        rows = len(x)
        for layer, states in zip(self.layers, cache.states, strict=True):
            found = self._qkv(layer, x, turns).flatten(0, 1)
            states.select(2, at).copy_(found[:, -2:].transpose(0, 1))
            keys, values = states.narrow(2, 0, at + 1)
            scores = torch.bmm(found[:, :-2], keys.transpose(1, 2))
            if hidden is not None:
                scores.masked_fill_(hidden, float("-inf"))
            seen = torch.bmm(torch.softmax(scores, -1), values)
            x.addmm_(seen.view(rows, -1), layer.out)
            self._mlp(layer, x)
        cache.width += 1
        return self._norm(x) @ self.head

    def logits(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, T, V] of whole sequences, padded on the right; [B, V] after one column `at` [B] of each."""
        x = self._full(ids, None)
        return self._norm(x if at is None else x[torch.arange(len(ids), device=ids.device), at]) @ self.head

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, T, E] what the head is given, of whole sequences, padded on the right."""
        return self._norm(self._full(ids, None)) * self.final


class Cache:
    """Keys and values, [2, B G, room, D] a layer, of which `width` columns are filled."""

    def __init__(self, model: Llama, rows: int, width: int, first: Tensor | None, room: int) -> None:
        self.width, self.first = width, first
        self.most = width + room
        self.groups = model.groups
        shape = (2, rows * model.groups, min(self.most, width + _GROWTH), model.dim)
        self.states = [model.embedding.new_empty(shape) for _ in model.layers]

    def select(self, rows: Tensor) -> Self:
        """The cache of these rows, a row as often as it is named. The old one is used up, a layer at a time."""
        chosen = copy.copy(self)
        chosen.first = None if self.first is None else self.first[rows]
        self.states.reverse()
        chosen.states = [self._taken(self.states.pop(), rows) for _ in range(len(self.states))]
        return chosen

    def _taken(self, states: Tensor, rows: Tensor) -> Tensor:
        _, _, room, dim = states.shape
        taken = states.new_empty((2, len(rows) * self.groups, room, dim))
        old, new = (x.view(2, -1, self.groups, room, dim)[..., : self.width, :] for x in (states, taken))
        new.copy_(old.index_select(1, rows))
        return taken

    @property
    def room(self) -> int:
        """Columns there is memory for."""
        return self.states[0].shape[2]

    def reserve(self) -> None:
        """Make room for one more column."""
        if self.width == self.room:
            more = min(self.most, 2 * self.room) - self.room
            for index, states in enumerate(self.states):
                self.states[index] = F.pad(states, (0, 0, 0, max(more, 1)))


def fits(model: Any) -> bool:
    """Whether `Llama` computes what this transformers model computes, as far as its config tells."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(config, "layer_types", None) or []
    return (
        config.model_type in _TYPES
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _ROPE
        and not getattr(config, "mlp_bias", False)
        and all(kind == "full_attention" for kind in layers)
        and getattr(config, "quantization_config", None) is None
        and model.model.layers[0].self_attn.o_proj.bias is None
    )


def _folded(weight: Tensor, norm: Tensor) -> Tensor:
    """A matrix that stands behind a norm, transposed and with the norm's weight multiplied in."""
    return (weight.detach() * norm.detach()).T.contiguous()
