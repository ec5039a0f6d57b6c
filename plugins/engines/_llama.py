"""A lean forward pass for Llama-shaped models: fused matrices, a preallocated cache, few and large operations.

On a small model most time goes to the number of operations, not to arithmetic. So q/k/v are one matrix and gate/up
another, norm weights and the attention scale are folded into them, rotary embedding is one complex product (pairs lie
side by side after a permutation of the rows), and query heads that share a key are one batched product.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

_TYPES = ("llama", "qwen2", "qwen3")
_ROPE = ("default", "linear", "llama3")
_GROWTH = 64


@dataclass(slots=True)
class _Layer:
    qkv: Tensor
    """[(H + 2 G) D, E]"""
    qkv_bias: Tensor | None
    out: Tensor
    """[E, H D]"""
    gate_up: Tensor
    """[2 M, E]"""
    down: Tensor
    """[E, M]"""
    q_norm: Tensor | None
    """[D]"""
    k_norm: Tensor | None


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
        self.head = _folded(model.lm_head.weight, model.model.norm.weight)
        self.layers = [self._layer(layer) for layer in model.model.layers]
        rotary = model.model.rotary_emb
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), rotary.inv_freq.float().cpu())
        turns = torch.polar(torch.full_like(angles, float(rotary.attention_scaling)), angles)
        self.turns = turns.to(self.embedding.device)
        """[positions, D / 2] complex"""

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        scale = self.dim**-0.5
        normed = getattr(attention, "q_norm", None) is not None
        order = torch.arange(self.dim).view(2, -1).T.flatten().to(self.embedding.device)

        def paired(tensor: Tensor) -> Tensor:
            return tensor.view(-1, self.dim, *tensor.shape[1:])[:, order].reshape(tensor.shape)

        def stacked(name: str) -> Tensor:
            q, k, v = (getattr(getattr(attention, f"{p}_proj"), name).detach() for p in "qkv")
            return torch.cat([paired(q) * (1.0 if normed else scale), paired(k), v])

        return _Layer(
            _folded(stacked("weight"), layer.input_layernorm.weight),
            stacked("bias") if attention.q_proj.bias is not None else None,
            attention.o_proj.weight.detach(),
            _folded(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), layer.post_attention_layernorm.weight),
            mlp.down_proj.weight.detach(),
            attention.q_norm.weight.detach()[order] * scale if normed else None,
            attention.k_norm.weight.detach()[order] if normed else None,
        )

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), None, self.eps)

    def _qkv(self, layer: _Layer, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [N, H, D], k and v [N, G, D] of rows x [N, E], turned by `turns` [N or 1, 1, D / 2]."""
        rows = F.linear(self._norm(x), layer.qkv, layer.qkv_bias).view(len(x), -1, self.dim)
        turned, v = rows[:, : -self.groups], rows[:, -self.groups :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = (
                self._norm(turned[:, : self.heads]) * layer.q_norm,
                self._norm(turned[:, self.heads :]) * layer.k_norm,
            )
            turned = torch.cat([q, k], 1)
        pairs = torch.view_as_complex(turned.float().view(*turned.shape[:-1], -1, 2))
        turned = torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
        return turned[:, : self.heads], turned[:, self.heads :], v

    def _mlp(self, layer: _Layer, x: Tensor) -> Tensor:
        gate, up = F.linear(self._norm(x), layer.gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), layer.down.T)

    def _full(self, ids: Tensor, first: Tensor | None, cache: Cache | None) -> Tensor:
        """[B, T, E] of whole sequences; row b begins at column first[b], all at 0 where it is None."""
        rows, width = ids.shape
        columns = torch.arange(width, device=ids.device)
        position = columns.expand(rows, width) if first is None else (columns - first[:, None]).clamp_(min=0)
        turns = self.turns[position.flatten()][:, None]
        allowed = None
        if first is not None:
            causal = columns[:, None] >= columns
            allowed = causal & ((columns >= first[:, None])[:, None, :] | torch.eye(width, device=ids.device).bool())
            allowed = allowed[:, None]
        x = self.embedding[ids.flatten()]
        for index, layer in enumerate(self.layers):
            q, k, v = (part.reshape(rows, width, -1, self.dim).transpose(1, 2) for part in self._qkv(layer, x, turns))
            if cache is not None:
                cache.keys[index][:, :, :width] = k
                cache.values[index][:, :, :width] = v
            seen = F.scaled_dot_product_attention(
                q, k, v, attn_mask=allowed, is_causal=allowed is None, scale=1.0, enable_gqa=self.heads > self.groups
            )
            x = torch.addmm(x, seen.transpose(1, 2).reshape(rows * width, -1), layer.out.T)
            x = self._mlp(layer, x)
        return x.view(rows, width, -1)

    def prefill(self, ids: Tensor, first: Tensor | None, room: int) -> tuple[Tensor, Cache]:
        """Logits [B, V] after each prompt, padded on the left, and its cache with room for so many more tokens."""
        cache = Cache(self, len(ids), ids.shape[1], first, room)
        x = self._full(ids, first, cache)[:, -1]
        return F.linear(self._norm(x), self.head), cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] after one more token each."""
        cache.reserve()
        at = cache.width
        turns, hidden = self.turns[min(at, len(self.turns) - 1)][None, None], None
        if cache.first is not None:  # a row that has ended and is not yet dropped may be past the last position
            turns = self.turns[(at - cache.first).clamp_(max=len(self.turns) - 1)][:, None]
            hidden = torch.arange(at + 1, device=tokens.device) < cache.first[:, None]
            hidden = hidden[:, None, None].expand(-1, self.groups, 1, -1).flatten(0, 1)
        x = self.embedding[tokens]
        rows = len(x)
        for index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, turns)
            keys, values = cache.keys[index], cache.values[index]
            keys[:, :, at] = k
            values[:, :, at] = v
            q = q.reshape(rows * self.groups, -1, self.dim)
            scores = torch.bmm(q, keys.flatten(0, 1)[:, : at + 1].transpose(1, 2))
            if hidden is not None:
                scores.masked_fill_(hidden, float("-inf"))
            weights = torch.softmax(scores, -1)
            seen = torch.bmm(weights, values.flatten(0, 1)[:, : at + 1])
            x = torch.addmm(x, seen.view(rows, -1), layer.out.T)
            x = self._mlp(layer, x)
        cache.width += 1
        return F.linear(self._norm(x), self.head)

    def logits(self, ids: Tensor) -> Tensor:
        """[B, T, V] of whole sequences, padded on the right."""
        return F.linear(self._norm(self._full(ids, None, None)), self.head)


class Cache:
    """Keys and values, [B, G, room, D] a layer, of which `width` columns are filled."""

    def __init__(self, model: Llama, rows: int, width: int, first: Tensor | None, room: int) -> None:
        self.width, self.first = width, first
        self.most = width + room
        shape = (rows, model.groups, min(self.most, width + _GROWTH), model.dim)
        self.keys = [model.embedding.new_empty(shape) for _ in model.layers]
        self.values = [model.embedding.new_empty(shape) for _ in model.layers]

    def select(self, rows: Tensor) -> Self:
        """The cache of these rows, a row as often as it is named."""
        chosen = copy.copy(self)
        chosen.first = None if self.first is None else self.first[rows]
        chosen.keys = [_taken(k, rows, self.width) for k in self.keys]
        chosen.values = [_taken(v, rows, self.width) for v in self.values]
        return chosen

    def reserve(self) -> None:
        """Make room for one more column."""
        room = self.keys[0].shape[2]
        if self.width == room:
            more = min(self.most, 2 * room) - room
            self.keys = [F.pad(k, (0, 0, 0, max(more, 1))) for k in self.keys]
            self.values = [F.pad(v, (0, 0, 0, max(more, 1))) for v in self.values]


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
    """A matrix that stands behind a norm, with the norm's weight multiplied into its columns."""
    return (weight.detach() * norm.detach()).contiguous()


def _taken(tensor: Tensor, rows: Tensor, width: int) -> Tensor:
    taken = tensor.new_empty((len(rows), *tensor.shape[1:]))
    taken[:, :, :width] = tensor[:, :, :width].index_select(0, rows)
    return taken
