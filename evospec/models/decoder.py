"""The layers of Llama, Mistral, Qwen2, Qwen3 and Gemma 3 (text), without transformers' own Python.

Merged projections, rotary tables, keys and values written in place. What the
layers compute is spelled once, here; how, is in `LayerOps`: plain PyTorch, to the
bit what transformers computes, or fused kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evospec.models.body import BodyOutput, layer_kinds
from evospec.models.kv_cache import KVCache, Window
from evospec.models.ops import HeadNorms, HeadShape, LayerOps, Norm, merge_parameters
from evospec.models.projection import Projection

_FAMILIES = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
}
# Frequencies that do not depend on how long the sequence is.
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}  # whether it is GELU


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: projections merged by rows, [query + key + value, hidden] and [gate + up, hidden]."""

    kind: str
    shape: HeadShape
    input_norm: Norm
    qkv: Projection
    head_norms: HeadNorms | None
    output: Projection
    attention_norm: Norm | None
    mlp_norm: Norm
    gate_up: Projection
    down: Projection
    mlp_output_norm: Norm | None


class DecoderBody:
    """Pre-norm layers with grouped-query attention and a gated MLP.

    The merged projections take the place of the model's own weights, which become views
    of them, so that the model itself still works.
    """

    def __init__(self, model: PreTrainedModel, ops: LayerOps) -> None:
        self._ops = ops
        layers: Any = model.base_model
        self._model = layers
        sliding = model.config.to_dict().get("sliding_window")
        self._layers = [
            _layer_weights(block, kind, model, sliding if kind == "sliding_attention" else None)
            for block, kind in zip(layers.layers, layer_kinds(model), strict=True)
        ]
        self._shapes = {layer.kind: layer.shape for layer in self._layers}
        self._is_gelu = _ACTIVATIONS[_activation(model)]
        self._final_norm = Norm.of(layers.norm)
        self._tables: dict[str, list[Tensor]] = {}

    @staticmethod
    def knows(model: PreTrainedModel) -> bool:
        """Whether this model's layers are among those spelled here."""
        return (
            type(model).__name__ in _FAMILIES
            and _rope_types(model) <= _STATIC_ROPE
            and _activation(model) in _ACTIVATIONS
        )

    def __call__(self, token_ids: Tensor, window: Window, cache: KVCache, taps: Sequence[int]) -> BodyOutput:
        cache.bind(window)
        ops = self._ops
        plans = {
            kind: ops.plan(window, shape, self._table(kind, cache.positions))
            for kind, shape in self._shapes.items()
        }
        hidden = self._model.embed_tokens(token_ids)
        change: Tensor | None = None
        entering: list[Tensor] = []
        for index, layer in enumerate(self._layers):
            hidden, qkv = ops.norm_project(hidden, change, layer.input_norm, layer.qkv)
            entering.append(hidden)
            attended = ops.attend(qkv, plans[layer.kind], layer.head_norms, cache, index)
            hidden, change = ops.extend(hidden, attended, layer.output, layer.attention_norm)
            gelu = self._is_gelu
            hidden, active = ops.norm_gate(hidden, change, layer.mlp_norm, layer.gate_up, gelu=gelu)
            hidden, change = ops.extend(hidden, active, layer.down, layer.mlp_output_norm)
        _, normed = ops.add_norm(hidden, change, self._final_norm)
        return BodyOutput(normed, [entering[tap] for tap in taps])

    def _table(self, kind: str, positions: int) -> Tensor:
        """Cosines and signed sines [2, positions or more, head_dim]."""
        tables = self._tables.setdefault(kind, [])
        if not tables or tables[-1].shape[1] < positions:
            # Shorter ones stay: captured graphs read them. Powers of two keep them few.
            tables.append(self._new_table(kind, 1 << (positions - 1).bit_length()))
        return tables[-1]

    def _new_table(self, kind: str, positions: int) -> Tensor:
        like = self._layers[0].qkv.weight
        where = torch.arange(positions, device=like.device)[None]
        rotary = self._model.rotary_emb
        cos, sin = rotary(like, where, kind) if kind in _rope_parameters(rotary) else rotary(like, where)
        half = cos.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return torch.cat((cos, signed)).contiguous()


def _layer_weights(block: Any, kind: str, model: PreTrainedModel, sliding_window: int | None) -> LayerWeights:
    attention, mlp = block.self_attn, block.mlp
    sandwich = hasattr(block, "pre_feedforward_layernorm")  # Gemma norms what leaves a part, too
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    config = model.config
    return LayerWeights(
        kind=kind,
        shape=HeadShape(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            scale=attention.scaling,
            sliding_window=sliding_window,
        ),
        input_norm=Norm.of(block.input_layernorm),
        qkv=Projection(
            merge_parameters(projections, "weight"),
            None if attention.q_proj.bias is None else merge_parameters(projections, "bias"),
        ),
        head_norms=(
            HeadNorms(Norm.of(attention.q_norm), Norm.of(attention.k_norm))
            if hasattr(attention, "q_norm")
            else None
        ),
        output=Projection(
            attention.o_proj.weight.detach(),
            None if attention.o_proj.bias is None else attention.o_proj.bias.detach(),
        ),
        attention_norm=Norm.of(block.post_attention_layernorm) if sandwich else None,
        mlp_norm=Norm.of(block.pre_feedforward_layernorm if sandwich else block.post_attention_layernorm),
        gate_up=Projection(merge_parameters([mlp.gate_proj, mlp.up_proj], "weight")),
        down=Projection(mlp.down_proj.weight.detach()),
        mlp_output_norm=Norm.of(block.post_feedforward_layernorm) if sandwich else None,
    )


def _activation(model: PreTrainedModel) -> str:
    settings = model.config.to_dict()
    return str(settings.get("hidden_activation") or settings.get("hidden_act"))


def _rope_parameters(holder: Any) -> dict[str, Any]:
    return dict(holder.config.to_dict().get("rope_parameters") or {})


def _rope_types(model: PreTrainedModel) -> set[str]:
    parameters = _rope_parameters(model)
    by_kind = [entry for entry in parameters.values() if isinstance(entry, dict)]
    return {str(entry.get("rope_type", "default")) for entry in (by_kind or [parameters])}
