"""The EAGLE-3 drafter: fused target features and the next token's embedding through one decoder layer.

Pair i is (feature of position i, token at position i + 1); its output predicts
token i + 2. Beyond the last known feature, the drafter's own output stands in
for it (Li et al., EAGLE-3, 2503.01840, section 3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from evospec.models.kv_cache import KVCache
from evospec.models.rope import Llama3Scaling, rope_table, rotate
from evospec.models.tables import TokenTables

Origin = Literal["evospec", "eagle3", "speculators"]


class DrafterConfig(BaseModel):
    """Shape and origin of a drafter; stored as config.json beside its weights.

    What published drafters may have and ours don't:

    Attributes:
        origin: layout of the checkpoint it came from; published ones carry no fingerprints.
        target_hidden_size: hidden size of the target; None: the drafter's own.
        draft_vocab_size: rows of a head of its own; None: the target's head, all of it.
        own_embedding: token embeddings of its own, [vocab, hidden].
        norm_before_residual: the residual starts from the normed hidden state.
        norm_before_fc: one norm over the concatenated features, before they are fused.
        fc_norm: one norm for each tapped layer's feature instead.
        norm_output: drafts go on from the normed output (EAGLE-3.1), not from the raw one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "eagle3"
    origin: Origin = "evospec"
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    vocab_size: int = Field(ge=1)
    tap_layers: tuple[int, ...] = Field(min_length=1)
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    rms_norm_eps: float = 1e-6
    max_positions: int = Field(ge=2)
    target_hidden_size: int | None = Field(default=None, ge=1)
    draft_vocab_size: int | None = Field(default=None, ge=1)
    own_embedding: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    target_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    target_name: str = ""

    @property
    def feature_size(self) -> int:
        """Width of the concatenated target features."""
        return len(self.tap_layers) * self.target_hidden

    @property
    def target_hidden(self) -> int:
        return self.target_hidden_size or self.hidden_size

    @property
    def maps_head(self) -> bool:
        """Whether its head covers a part of the vocabulary, and so needs a map to token ids."""
        return self.draft_vocab_size is not None and self.draft_vocab_size < self.vocab_size

    @model_validator(mode="after")
    def _consistent(self) -> DrafterConfig:
        if self.draft_vocab_size is not None and self.draft_vocab_size > self.vocab_size:
            raise ValueError(f"draft_vocab_size {self.draft_vocab_size} exceeds vocab_size {self.vocab_size}")
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("norm_before_fc and fc_norm exclude each other")
        borrows = not self.own_embedding or self.draft_vocab_size is None
        if self.target_hidden != self.hidden_size and borrows:
            raise ValueError(
                f"hidden size {self.hidden_size} differs from the target's {self.target_hidden}, so the "
                "drafter needs embeddings and a head of its own"
            )
        return self


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


class Rows(nn.Module):
    """A table with one row per token, looked up or scored: weight [rows, size]."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, size))


class DecoderLayer(nn.Module):
    """EAGLE-3's decoder layer: embedding and hidden state are normed apart, then concatenated."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
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
        residual = self.hidden_norm(hidden) if self.norm_before_residual else hidden
        hidden = residual + self.self_attn.merge(attended)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Drafter(nn.Module):
    """EAGLE-3 drafter. It scores the target's own head rows and reads the target's embeddings
    unless its config says that it has tables of its own.

    The published layout's parameter names are kept (`fc`, `layers.0.*`, `norm`, `lm_head`,
    `embed_tokens`, `input_norm`, `fc_norm.*`); `head_ids` are the token ids of `lm_head`'s rows.
    """

    rope: Tensor
    head_ids: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(config.feature_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(config)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_norm = RMSNorm(config.feature_size, config.rms_norm_eps) if config.norm_before_fc else None
        self.fc_norm: nn.ModuleList | None = None
        if config.fc_norm:
            norms = [RMSNorm(config.target_hidden, config.rms_norm_eps) for _ in config.tap_layers]
            self.fc_norm = nn.ModuleList(norms)
        self.embed_tokens = Rows(config.vocab_size, config.hidden_size) if config.own_embedding else None
        self.lm_head: Rows | None = None
        if config.draft_vocab_size is not None:
            self.lm_head = Rows(config.draft_vocab_size, config.hidden_size)
        if config.maps_head:
            self.register_buffer("head_ids", torch.zeros(config.draft_vocab_size or 0, dtype=torch.int64))
        table = rope_table(
            config.max_positions, config.head_dim, config.rope_theta, self.device, config.rope_scaling
        )
        self.register_buffer("rope", table, persistent=False)

    @property
    def layer(self) -> DecoderLayer:
        return cast("DecoderLayer", self.layers[0])

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def new_cache(self, slots: int, positions: int) -> KVCache:
        return KVCache(
            layers=1,
            kv_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            slots=slots,
            positions=positions,
            dtype=self.fc.weight.dtype,
            device=self.device,
        )

    def tables(self, target: TokenTables) -> TokenTables:
        """The token tables it works with: its own where it has them, else the target's."""
        tables = target
        if self.embed_tokens is not None:
            tables = replace(tables, embedding=self.embed_tokens.weight, embedding_scale=1.0)
        if self.lm_head is not None:
            ids = self.head_ids if self.config.maps_head else None
            tables = replace(tables, head=self.lm_head.weight, head_ids=ids)
        return tables

    def share_embedding(self, target: TokenTables) -> None:
        """Lets go of embeddings of its own that are a copy of the target's."""
        own = self.embed_tokens
        if own is None or own.weight.shape != target.embedding.shape:
            return
        if torch.equal(own.weight, target.embedding):
            own.weight = nn.Parameter(target.embedding, requires_grad=False)

    def fuse(self, features: Tensor) -> Tensor:
        """Target features [..., taps * target hidden] to drafter hidden states [..., hidden]."""
        return self.fc(self.normed_features(features))

    def normed_features(self, features: Tensor) -> Tensor:
        """Features as `fc` reads them [..., taps * target hidden]."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return features

    def carry(self, hidden: Tensor) -> Tensor:
        """What stands in for the next position's fused features: its own output [..., hidden]."""
        return self.norm(hidden) if self.config.norm_output else hidden

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows, 1, width, head_dim] at positions [rows, width]."""
        cos, sin = self.rope[:, positions]
        return cos[:, None], sin[:, None]
