"""Layer operations as fused kernels, for CUDA devices."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from evospec.kernels.attention import decode_attention, takes
from evospec.kernels.gate import gate as fused_gate
from evospec.kernels.norm import add_norm
from evospec.kernels.rotary import rotate_store
from evospec.models.attention import grouped_attention
from evospec.models.kv_cache import KVCache, Window
from evospec.models.ops import AttentionPlan, HeadNorms, HeadShape, Norm


class KernelOps:
    """The same operations in fewer launches; rounding is that of the separate operations.

    Prompts attend through PyTorch's own fused attention, which needs no mask where nothing is cached.
    """

    def plan(self, window: Window, shape: HeadShape, table: Tensor) -> AttentionPlan:
        few = takes(window.width * shape.heads // shape.kv_heads, shape.head_dim, table.element_size())
        masked = not few and not _is_causal(window, shape)
        return AttentionPlan(window, shape, table, window.mask(shape.sliding_window) if masked else None)

    def add_norm(self, hidden: Tensor, change: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, change, norm.weight, norm.eps, scales_wide=norm.scales_wide)

    def attend(
        self, qkv: Tensor, plan: AttentionPlan, norms: HeadNorms | None, cache: KVCache, layer: int
    ) -> Tensor:
        window, shape = plan.window, plan.shape
        keys, values = cache.keys[layer], cache.values[layer]
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

    def gate(self, gate_up: Tensor, *, gelu: bool) -> Tensor:
        return fused_gate(gate_up, gelu=gelu)


def _is_causal(window: Window, shape: HeadShape) -> bool:
    """Whether each place sees all places before it, and nothing else."""
    return window.fresh and window.tree is None and shape.sliding_window is None
