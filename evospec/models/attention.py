"""Attention over slot caches: one function for targets (through transformers) and drafters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from evospec.errors import UnsupportedModelError

ATTENTION_NAME = "evospec"


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Grouped-query attention without repeating keys: the heads of a group become queries.

    Args:
        query: [rows, heads, width, head_dim].
        key, value: [rows, kv_heads, span, head_dim].
        mask: boolean, [rows, 1, width, span].
        scale: factor on the scores.

    Returns:
        [rows, heads, width, head_dim].
    """
    rows, heads, width, head_dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if groups == 1:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    folded = query.reshape(rows, kv_heads, groups * width, head_dim)
    mask = mask.repeat(1, 1, groups, 1) if width > 1 else mask.expand(-1, -1, groups, -1)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return output.reshape(rows, heads, width, head_dim)


def _attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if softcap is not None or s_aux is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} uses attention soft-capping or sinks, which are not supported"
        )
    output = grouped_attention(query, key, value, attention_mask, scaling)
    return output.transpose(1, 2), None


def register_attention() -> None:
    """Makes `attn_implementation="evospec"` known to transformers; harmless when repeated."""
    # cuDNN's attention builds a plan for each new shape, which costs more than it ever saves here.
    torch.backends.cuda.enable_cudnn_sdp(False)
    AttentionInterface.register(ATTENTION_NAME, _attention_forward)
