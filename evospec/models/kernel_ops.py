"""Layer operations as fused kernels, for CUDA devices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from evospec.kernels.attend import MOST_PLACES, attend
from evospec.kernels.attention import decode_attention, takes
from evospec.kernels.gate import gate as fused_gate
from evospec.kernels.norm import add_norm
from evospec.kernels.project import project
from evospec.kernels.project_many import project_many
from evospec.kernels.project_pair import project_pair
from evospec.kernels.rotary import rotate_store
from evospec.kernels.tiling import MOST_TOKENS
from evospec.models.attention import grouped_attention
from evospec.models.kv_cache import KVCache, Window
from evospec.models.ops import AttentionPlan, HeadNorms, HeadShape, Norm
from evospec.models.projection import Projection


class KernelOps:
    """The same operations in fewer launches; rounding is nearly that of the separate operations.

    Few tokens are multiplied by kernels that take in the norm, activation or sum beside the product.
    Prompts attend through PyTorch's own fused attention, which needs no mask where nothing is cached.
    """

    def fuses(self, states: Tensor) -> bool:
        """Whether these tokens take less time than the weights that they are multiplied by."""
        return states.numel() <= MOST_TOKENS * states.shape[-1]

    def plan(self, window: Window, shape: HeadShape, table: Tensor) -> AttentionPlan:
        few = takes(window.width * shape.heads // shape.kv_heads, shape.head_dim, table.element_size())
        masked = not few and not _is_causal(window, shape)
        return AttentionPlan(window, shape, table, window.mask(shape.sliding_window) if masked else None)

    def add_norm(self, hidden: Tensor, change: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, change, norm.weight, norm.eps, scales_wide=norm.scales_wide)

    def project(self, states: Tensor, projection: Projection) -> Tensor:
        if not self.fuses(states):
            return _product(states, projection)
        return project(states, projection.stack, _variants(projection), bias=projection.bias)

    def norm_project(
        self, hidden: Tensor, change: Tensor | None, norm: Norm, projection: Projection
    ) -> tuple[Tensor, Tensor]:
        if not self.fuses(hidden):
            hidden, normed = self.add_norm(hidden, change, norm)
            return hidden, _product(normed, projection)
        hidden = hidden if change is None else hidden + change
        stack, bias = projection.stack, projection.bias
        return hidden, project(
            hidden, stack, _variants(projection), bias=bias, norm=norm.weight, eps=norm.eps
        )

    def norm_project_pair(
        self, first: Tensor, second: Tensor, norms: tuple[Norm, Norm], projection: Projection
    ) -> Tensor:
        if self.fuses(first) and projection.bias is None:
            weights, epsilons = (norms[0].weight, norms[1].weight), (norms[0].eps, norms[1].eps)
            return project_pair(first, second, weights, epsilons, projection.stack, _variants(projection))
        normed = (self.add_norm(first, None, norms[0])[1], self.add_norm(second, None, norms[1])[1])
        return _product(torch.cat(normed, dim=-1), projection)

    def attend(
        self, qkv: Tensor, plan: AttentionPlan, norms: HeadNorms | None, cache: KVCache, layer: int
    ) -> Tensor:
        window, shape = plan.window, plan.shape
        keys, values = cache.keys[layer], cache.values[layer]
        if plan.mask is None and not _is_causal(window, shape) and window.width <= MOST_PLACES:
            return attend(
                qkv,
                plan.rotary,
                window.starts,
                keys,
                values,
                first_slot=window.first_slot,
                heads=shape.heads,
                span=window.span,
                scale=shape.scale,
                sliding_window=shape.sliding_window,
                tree=window.tree,
                norms=None if norms is None else (norms.query.weight, norms.key.weight),
                eps=0.0 if norms is None else norms.query.eps,
                scales_wide=norms is not None and norms.query.scales_wide,
            )
        query = rotate_store(
            qkv,
            plan.rotary,
            window.starts,
            keys,
            values,
            tree=window.tree,
            first_slot=window.first_slot,
            heads=shape.heads,
            norms=None if norms is None else (norms.query.weight, norms.key.weight),
            eps=0.0 if norms is None else norms.query.eps,
            scales_wide=norms is not None and norms.query.scales_wide,
        )
        if plan.mask is None and not _is_causal(window, shape):
            return decode_attention(
                query,
                keys,
                values,
                window.starts,
                first_slot=window.first_slot,
                span=window.span,
                scale=shape.scale,
                sliding_window=shape.sliding_window,
                tree=window.tree,
            )
        slots = slice(window.first_slot, window.first_slot + window.rows)
        keys, values = keys[slots, :, : window.span], values[slots, :, : window.span]
        if plan.mask is None:
            grouped = shape.heads != shape.kv_heads
            attended = scaled_dot_product_attention(
                query, keys, values, is_causal=True, scale=shape.scale, enable_gqa=grouped
            )
        else:
            attended = grouped_attention(query, keys, values, plan.mask, shape.scale)
        return attended.transpose(1, 2).flatten(-2)

    def norm_gate(
        self, hidden: Tensor, change: Tensor | None, norm: Norm, gate_up: Projection, *, gelu: bool
    ) -> tuple[Tensor, Tensor]:
        if not self.fuses(hidden) or gate_up.bias is not None:
            hidden, both = self.norm_project(hidden, change, norm, gate_up)
            return hidden, fused_gate(both, gelu=gelu)
        hidden = hidden if change is None else hidden + change
        return hidden, project(
            hidden, gate_up.stack, _variants(gate_up), norm=norm.weight, eps=norm.eps, gelu=gelu
        )

    def extend(
        self, hidden: Tensor, states: Tensor, projection: Projection, norm: Norm | None
    ) -> tuple[Tensor, Tensor | None]:
        if norm is not None:
            return hidden, self.add_norm(self.project(states, projection), None, norm)[1]
        if not self.fuses(states):
            return hidden, _product(states, projection)
        return project(
            states, projection.stack, _variants(projection), bias=projection.bias, residual=hidden
        ), None


def _variants(projection: Projection) -> Tensor | None:
    return None if projection.choice is None else projection.choice.variants


def _product(states: Tensor, projection: Projection) -> Tensor:
    """Of more tokens than fused kernels take."""
    choice = projection.choice
    if choice is None or len(choice) == 1 or projection.bias is not None:
        return projection(states)
    return project_many(states, projection.stack, choice.variants, choice.order)


def _is_causal(window: Window, shape: HeadShape) -> bool:
    """Whether each place sees all places before it, and nothing else."""
    return window.fresh and window.tree is None and shape.sliding_window is None
