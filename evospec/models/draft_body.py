"""The drafter as decoding runs it: merged projections over slot caches, through `LayerOps`.

Training unrolls the same weights in `unroll`; here every pass writes a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evospec.models.draft_stacks import DraftStacks
from evospec.models.drafter import Drafter, RMSNorm
from evospec.models.kv_cache import KVCache, Window
from evospec.models.ops import HeadShape, LayerOps, Norm, layer_ops
from evospec.models.rope import rope_table
from evospec.models.row_choice import RowChoice
from evospec.stopwatch import NO_STOPWATCH, Stopwatch

_BEYOND = 512  # positions past a request's last token, where drafts that are cut off are written


class DraftBody:
    """An EAGLE-3 drafter's layer and norms.

    The merged projections take the place of the drafter's own weights, which become views of
    them. After an adapter was written into the drafter, `refresh` brings it into force.

    Passes may be told the choice of each row; without, all go through the first variant of the weights,
    which is the drafter's own.

    Args:
        variants: how many there are of each linear layer's weights.

    Attributes:
        output_norm: between its output and the head.
        stacks: the weights of linear layers.
    """

    def __init__(self, drafter: Drafter, ops: LayerOps | None = None, variants: int = 1) -> None:
        self.drafter = drafter
        self.stopwatch: Stopwatch = NO_STOPWATCH
        config, layer = drafter.config, drafter.layer
        self._ops = layer_ops(drafter.device, config.head_dim) if ops is None else ops
        self._shape = HeadShape(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=layer.self_attn.scale,
            sliding_window=None,
        )
        self._embedding_norm = _norm(layer.input_layernorm)
        self._hidden_norm = _norm(layer.hidden_norm)
        self._mlp_norm = _norm(layer.post_attention_layernorm)
        self.output_norm = _norm(drafter.norm)
        self.stacks = DraftStacks(drafter, variants)
        positions = config.max_positions + _BEYOND
        cos, sin = rope_table(
            positions, config.head_dim, config.rope_theta, drafter.device, config.rope_scaling
        )
        half = config.head_dim // 2
        self._rotary = torch.stack((cos, torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)))

    def refresh(self) -> None:
        """Takes over what was written into the drafter's weights."""
        self.stacks.refresh()

    def fuse(self, features: Tensor, choice: RowChoice | None = None) -> Tensor:
        """Target features [rows, width, taps * target hidden] to drafter hidden states
        [rows, width, hidden]."""
        return self._ops.project(self.drafter.normed_features(features), self.stacks.fc.by(choice))

    def fuses(self, hidden: Tensor) -> bool:
        """Whether so few states [..., hidden] go through fused kernels."""
        return self._ops.fuses(hidden)

    def norm(self, hidden: Tensor) -> Tensor:
        """Hidden states ready for the head."""
        return self._ops.add_norm(hidden, None, self.output_norm)[1]

    def carry(self, hidden: Tensor) -> Tensor:
        """What stands in for the next position's fused features: its own output [..., hidden]."""
        return self.norm(hidden) if self.drafter.config.norm_output else hidden

    @torch.inference_mode()
    def __call__(
        self,
        hidden: Tensor,
        embeddings: Tensor,
        window: Window,
        cache: KVCache,
        choice: RowChoice | None = None,
    ) -> Tensor:
        """Runs pairs at the window's positions, writing the cache there.

        Args:
            hidden: fused features, or the drafter's own output [rows, width, hidden].
            embeddings: of each pair's token [rows, width, hidden].

        Returns:
            Hidden states [rows, width, hidden], before the final norm.
        """
        self.stopwatch.mark("draft_layer")
        cache.bind(window)
        ops, layer, stacks = self._ops, self.drafter.layer, self.stacks
        hidden = hidden.contiguous()
        plan = ops.plan(window, self._shape, self._rotary)
        norms = (self._embedding_norm, self._hidden_norm)
        qkv = ops.norm_project_pair(embeddings, hidden, norms, stacks.qkv.by(choice))
        attended = ops.attend(qkv, plan, None, cache, 0)
        if layer.norm_before_residual:
            _, hidden = ops.add_norm(hidden, None, self._hidden_norm)
        hidden, change = ops.extend(hidden, attended, stacks.output.by(choice), None)
        gate_up = stacks.gate_up.by(choice)
        hidden, active = ops.norm_gate(hidden, change, self._mlp_norm, gate_up, gelu=False)
        hidden, change = ops.extend(hidden, active, stacks.down.by(choice), None)
        hidden = hidden if change is None else hidden + change
        self.stopwatch.mark("draft_head")
        return hidden


def _norm(module: RMSNorm) -> Norm:
    return Norm(module.weight.detach(), module.eps, scales_wide=True)
