"""Training-time test: the drafter unrolled over its own outputs (EAGLE-3, 2503.01840, section 3.2).

Every position s of a sequence is the root of a draft. Step j of root s reads the
drafter's output of step j - 1 and token s + 1 + j, sees the target features of
pairs 0..s and its own earlier steps, and predicts token s + 2 + j: what happens
when drafting from s, for all s at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.models.drafter import QKV, DecoderLayer, Drafter
from evospec.models.past import Past
from evospec.models.root_attention import root_attention


@dataclass(frozen=True, slots=True)
class DraftStep:
    """What a draft step computes before and after its attention: `project` as `DecoderLayer.project`,
    `leave` as the function of that name."""

    project: Callable[[DecoderLayer, Tensor, Tensor, Tensor, Tensor], QKV]
    leave: Callable[[Drafter, Tensor, Tensor], tuple[Tensor, Tensor]]

    @classmethod
    def plain(cls) -> DraftStep:
        return cls(DecoderLayer.project, leave)

    @classmethod
    def compiled(cls) -> DraftStep:
        """Fused by `torch.compile`: norms, rotary embedding and activations are most of a step otherwise."""
        return cls(torch.compile(DecoderLayer.project, dynamic=True), torch.compile(leave, dynamic=True))


def leave(drafter: Drafter, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """From attention output [rows, heads, width, head_dim] to the normed hidden states, for the head, and
    what the next step reads, [rows, width, hidden] each."""
    hidden = drafter.layer.finish(hidden, attended)
    return drafter.norm(hidden), drafter.carry(hidden)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in their sequences windows lie.

    Attributes:
        starts: positions before each, int64 [rows].
        past: what the drafter has for these; None for nothing.
    """

    starts: Tensor
    past: Past | None = None


def unroll(
    drafter: Drafter,
    features: Tensor,
    embeddings: Tensor,
    steps: int,
    step: DraftStep | None = None,
    place: Place | None = None,
) -> Iterator[Tensor]:
    """Yields the normed hidden states of each draft step, ready for the head.

    Args:
        features: target features of pairs 0..width-1 [rows, width, taps * hidden].
        embeddings: of tokens 1..width+steps-1 [rows, width + steps - 1, hidden].
        steps: draft steps to unroll.
        step: how one is computed; plainly when left out.
        place: of the windows; at the beginning of their sequences when left out.

    Yields:
        [rows, width, hidden] per step; at step j, index s predicts token s + 2 + j.

    Example: tokens a b c d e, steps 2, width 3. Pairs are (f_a, b), (f_b, c), (f_c, d).
    Step 0 predicts c, d, e. Step 1 reads (out_a, c), (out_b, d), (out_c, e) and predicts
    d, e and the token after e.
    """
    step = DraftStep.plain() if step is None else step
    rows, width, _ = features.shape
    positions = torch.arange(width, device=features.device).expand(rows, width)
    past = None
    if place is not None:
        positions, past = positions + place.starts[:, None], place.past
    last = drafter.config.max_positions - 1  # nobody scores what drafts from a sequence's end put past it
    hidden = drafter.fuse(features)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for depth in range(steps):
        cos, sin = drafter.rotary((positions + depth).clamp(max=last))
        qkv = step.project(drafter.layer, hidden, embeddings[:, depth : depth + width], cos, sin)
        keys.append(qkv.key)
        values.append(qkv.value)
        attended = root_attention(qkv.query, keys, values, drafter.layer.self_attn.scale, past)
        normed, hidden = step.leave(drafter, hidden, attended)
        yield normed
