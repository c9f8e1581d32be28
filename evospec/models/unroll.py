"""Training-time test: the drafter unrolled over its own outputs (EAGLE-3, 2503.01840, section 3.2).

Every position s of a sequence is the root of a draft. Step j of root s reads the
drafter's output of step j - 1 and token s + 1 + j, sees the target features of
pairs 0..s and its own earlier steps, and predicts token s + 2 + j: what happens
when drafting from s, for all s at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evospec.models.attention import grouped_attention
from evospec.models.drafter import Drafter


def unroll(
    drafter: Drafter,
    features: Tensor,
    embeddings: Tensor,
    steps: int,
    *,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yields the normed hidden states of each draft step, ready for the head.

    Args:
        features: target features of pairs 0..width-1 [rows, width, taps * hidden].
        embeddings: of tokens 1..width+steps-1 [rows, width + steps - 1, hidden].
        steps: draft steps to unroll.
        segments: document of each pair [rows, width]; pairs see their own document only.
        positions: position of each pair [rows, width]; default 0..width-1.

    Yields:
        [rows, width, hidden] per step; at step j, index s predicts token s + 2 + j.

    Example: tokens a b c d e, steps 2, width 3. Pairs are (f_a, b), (f_b, c), (f_c, d).
    Step 0 predicts c, d, e. Step 1 reads (out_a, c), (out_b, d), (out_c, e) and predicts
    d, e and the token after e.
    """
    rows, width, _ = features.shape
    if positions is None:
        positions = torch.arange(width, device=features.device).expand(rows, width)
    causal = _root_mask(width, segments, features.device)  # [rows or 1, 1, width, width]
    own = torch.eye(width, dtype=torch.bool, device=features.device).expand_as(causal)

    hidden = drafter.fuse(features)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for step in range(steps):
        cos, sin = drafter.rotary(positions + step)
        qkv = drafter.layer.project(hidden, embeddings[:, step : step + width], cos, sin)
        keys.append(qkv.key)
        values.append(qkv.value)
        mask = torch.cat([causal] + [own] * step, dim=-1)  # [.., width, (step + 1) * width]
        attended = grouped_attention(
            qkv.query,
            torch.cat(keys, dim=2),
            torch.cat(values, dim=2),
            mask.expand(rows, -1, -1, -1),
            drafter.layer.self_attn.scale,
        )
        hidden = drafter.layer.finish(hidden, attended)
        yield drafter.norm(hidden)
        hidden = drafter.carry(hidden)


def _root_mask(width: int, segments: Tensor | None, device: torch.device) -> Tensor:
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None]
    if segments is not None:
        causal = causal & (segments[:, :, None] == segments[:, None, :])
    return causal[:, None]
