"""The EAGLE-3 drafter: fused target features and the next token's embedding through one decoder layer.

Pair i is (feature of position i, token at position i + 1); its output predicts
token i + 2. Beyond the last known feature, the drafter's own output stands in
for it (Li et al., EAGLE-3, 2503.01840, section 3).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import silu

from evospec.models.attention import causal_mask, grouped_attention
from evospec.models.kv_cache import KVCache, Window
from evospec.models.rope import rope_table, rotate


class DrafterConfig(BaseModel):
    """Shape and origin of a drafter; stored as config.json beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "eagle3"
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    vocab_size: int = Field(ge=1)
    tap_layers: tuple[int, ...] = Field(min_length=1)
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_positions: int = Field(ge=2)
    target_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    target_name: str = ""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich, 1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(states.dtype)


class QKV(NamedTuple):
    """Rotated queries [rows, heads, width, head_dim], keys and values [rows, kv_heads, width, head_dim]."""

    query: Tensor
    key: Tensor
    value: Tensor


class Attention(nn.Module):
    """Projections of the drafter's attention; its input is embedding and hidden state side by side."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        inputs, heads, kv_heads = (
            2 * config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.q_proj = nn.Linear(inputs, heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(inputs, kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(inputs, kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * config.head_dim, config.hidden_size, bias=False)

    def project(self, states: Tensor, cos: Tensor, sin: Tensor) -> QKV:
        query, key, value = (
            proj(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return QKV(rotate(query, cos, sin), rotate(key, cos, sin), value)

    def merge(self, attended: Tensor) -> Tensor:
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(states)) * self.up_proj(states))


class DecoderLayer(nn.Module):
    """EAGLE-3's decoder layer: embedding and hidden state are normed apart, then concatenated."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def project(self, hidden: Tensor, embeddings: Tensor, cos: Tensor, sin: Tensor) -> QKV:
        states = torch.cat((self.input_layernorm(embeddings), self.hidden_norm(hidden)), dim=-1)
        return self.self_attn.project(states, cos, sin)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Adds attention output [rows, heads, width, head_dim] and MLP to the residual."""
        hidden = hidden + self.self_attn.merge(attended)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Drafter(nn.Module):
    """EAGLE-3 drafter without embeddings or head: those are the target's own rows.

    The published layout's parameter names are kept (`fc`, `layers.0.*`, `norm`).
    """

    rope: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.tap_layers) * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(config)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        table = rope_table(config.max_positions, config.head_dim, config.rope_theta, torch.device("cpu"))
        self.register_buffer("rope", table, persistent=False)

    @property
    def layer(self) -> DecoderLayer:
        return cast("DecoderLayer", self.layers[0])

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def new_cache(self, slots: int, positions: int) -> KVCache:
        layers = [(self.config.num_key_value_heads, self.config.head_dim)]
        return KVCache(layers, slots, positions, self.fc.weight.dtype, self.device)

    def fuse(self, features: Tensor) -> Tensor:
        """Target features [..., taps * hidden] to drafter hidden states [..., hidden]."""
        return self.fc(features)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows, 1, width, head_dim] at positions [rows, width]."""
        cos, sin = self.rope[:, positions]
        return cos[:, None], sin[:, None]

    @torch.inference_mode()
    def forward(self, hidden: Tensor, embeddings: Tensor, window: Window, cache: KVCache) -> Tensor:
        """Runs pairs at the window's positions, writing the cache there.

        Args:
            hidden: fused features, or the drafter's own output [rows, width, hidden].
            embeddings: of each pair's token [rows, width, hidden].

        Returns:
            Hidden states [rows, width, hidden], before the final norm.
        """
        cos, sin = self.rotary(window.positions())
        qkv = self.layer.project(hidden, embeddings, cos, sin)
        cache.bind(window)
        key, value = cache.update(qkv.key, qkv.value, 0)
        mask = causal_mask(window.starts, window.width, window.span)
        attended = grouped_attention(qkv.query, key, value, mask, self.layer.self_attn.scale)
        return self.layer.finish(hidden, attended)
