"""Attention when a drafter is unrolled from every position at once.

At step j a root sees the pairs up to its own position, and what its own steps 1..j
added: one key each. The first part is ordinary causal attention; the second, a few
products per query. Both are joined through their log-sum-exp, so that no mask as
large as all steps' keys is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evospec.models.attention import grouped_attention
from evospec.models.past import Past


def root_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    past: Past | None = None,
) -> Tensor:
    """Attention of one draft step of all roots.

    Args:
        query: [rows, heads, width, head_dim].
        keys, values: of step 0 and of every step since, [rows, kv_heads, width, head_dim] each. A
            root sees those of step 0 up to its own position, and its own of the others.
        scale: factor on the scores.
        past: seen by every root, beside these.

    Returns:
        [rows, heads, width, head_dim].
    """
    kind = values[0].dtype  # under autocast, what linear layers give
    query, keys = query.to(kind), [key.to(kind) for key in keys]
    # Fused kernels take half precision only, and no past.
    if past is not None or (query.device.type == "cuda" and kind == torch.float32):
        return masked_root_attention(query, keys, values, scale, past)
    own_keys = torch.stack(keys[1:]) if keys[1:] else query.new_empty(0)
    own_values = torch.stack(list(values[1:])) if keys[1:] else query.new_empty(0)
    attended: Tensor = _RootAttention.apply(query, keys[0], values[0], own_keys, own_values, scale)
    return attended


def masked_root_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    past: Past | None = None,
) -> Tensor:
    """The same, spelled as one masked attention."""
    rows, _, width, _ = query.shape
    causal = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    own = torch.eye(width, dtype=torch.bool, device=query.device)
    mask = torch.cat([causal] + [own] * (len(keys) - 1), dim=-1)  # [width, steps * width]
    mask = mask.expand(rows, -1, -1)
    keys, values = list(keys), list(values)
    if past is not None:
        keys, values = [past.keys.to(query.dtype), *keys], [past.values.to(query.dtype), *values]
        mask = torch.cat((past.seen[:, None].expand(-1, width, -1), mask), dim=-1)
    return grouped_attention(query, torch.cat(keys, dim=2), torch.cat(values, dim=2), mask[:, None], scale)


class _Causal(NamedTuple):
    """Causal attention's output and log-sum-exp [rows, heads, width], and what its gradient needs."""

    output: Tensor
    lse: Tensor
    randomness: tuple[Tensor, ...]


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> _Causal:
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        return _Causal(output, lse, ())
    found = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, True, False, scale=scale
    )
    return _Causal(found[0], found[1], (found[6], found[7]))


def _causal_gradients(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], joined: _Causal, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to causal attention's inputs.

    Given the output and log-sum-exp over *all* keys in place of its own, the kernel computes what
    belongs to its part of them (as in ring attention, Liu et al., 2310.01889).
    """
    query, key, value = inputs
    if query.device.type == "cpu":
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, joined.output, joined.lse, 0.0, True, scale=scale
        )
    else:
        width = query.shape[2]
        found = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient,
            query,
            key,
            value,
            joined.output,
            joined.lse,
            None,
            None,
            width,
            width,
            0.0,
            True,
            *joined.randomness,
            scale=scale,
        )
    return found[0], found[1], found[2]


class _RootAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        own_keys: Tensor,
        own_values: Tensor,
        scale: float,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        causal = _causal(query, _spread(key, groups), _spread(value, groups), scale)
        output, lse = causal.output, causal.lse
        if len(own_keys):
            scores = _grouped_products(query, own_keys) * scale  # [steps, rows, heads, width]
            lse = torch.logsumexp(torch.cat((causal.lse[None], scores)), dim=0)
            output = output * (causal.lse - lse).exp()[..., None]
            for weight, own in zip((scores - lse).exp(), own_values, strict=True):
                output += weight[..., None] * _spread(own, groups)
            output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, own_keys, own_values, output, lse, *causal.randomness)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, own_keys, own_values, output, lse, *randomness = ctx.saved_tensors
        groups, scale = query.shape[1] // key.shape[1], ctx.scale
        gradient = gradient.contiguous()
        to_query, to_key, to_value = _causal_gradients(
            gradient,
            (query, _spread(key, groups), _spread(value, groups)),
            _Causal(output, lse, tuple(randomness)),
            scale,
        )
        to_own_keys, to_own_values = torch.empty_like(own_keys), torch.empty_like(own_values)
        if len(own_keys):
            mean = (gradient * output).sum(dim=-1, dtype=torch.float32)  # [rows, heads, width]
            weights = (_grouped_products(query, own_keys) * scale - lse).exp()
            to_scores = weights * (_grouped_products(gradient, own_values) - mean) * scale
            to_query = to_query.float()
            for step, own in enumerate(own_keys):
                by_score = to_scores[step][..., None]
                to_query += by_score * _spread(own, groups)
                to_own_keys[step] = _gather(by_score * query, groups)
                to_own_values[step] = _gather(weights[step][..., None] * gradient, groups)
            to_query = to_query.to(query.dtype)
        return (
            to_query,
            _gather(to_key, groups).to(key.dtype),
            _gather(to_value, groups).to(value.dtype),
            to_own_keys,
            to_own_values,
            None,
        )


def _spread(states: Tensor, groups: int) -> Tensor:
    """Of key heads, to the query heads that read them [rows, heads, width, head_dim]."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _gather(states: Tensor, groups: int) -> Tensor:
    """Sums over the query heads of each key head [rows, kv_heads, width, head_dim]."""
    return states if groups == 1 else states.unflatten(1, (-1, groups)).sum(dim=2, dtype=torch.float32)


def _grouped_products(queries: Tensor, own: Tensor) -> Tensor:
    """Each query with its own vector of each step, float32 [steps, rows, heads, width].

    Args:
        queries: [rows, heads, width, head_dim].
        own: [steps, rows, kv_heads, width, head_dim].
    """
    kv_heads = own.shape[2]
    folded = queries.unflatten(1, (kv_heads, -1))  # [rows, kv_heads, groups, width, head_dim]
    return torch.stack(
        [(folded * each[:, :, None]).sum(dim=-1, dtype=torch.float32).flatten(1, 2) for each in own]
    )
