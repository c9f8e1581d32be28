"""A drafter's first weights, from its target's own last layer.

The fusion passes the highest tapped layer on, and the drafter's layer is the target's
last one, with no eye yet for the token's embedding: from the first step the drafter
predicts what the target would, had it no layers in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evospec.models.drafter import MLP, Drafter
from evospec.models.target import Target


@torch.no_grad()
def start_from_target(drafter: Drafter, target: Target) -> bool:
    """Copies what the two layers have in common.

    Query and key projections with biases, which the drafter has none of, are left as they are.

    Returns:
        Whether the target's layers are of a kind that can be copied: pre-norm, gated MLP,
        and no norms of heads or of what leaves a part.
    """
    body: Any = target.model.base_model
    last = body.layers[-1]
    parts = dict(last.named_children())
    if set(parts) != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return False
    attention, mlp = parts["self_attn"], parts["mlp"]
    if hasattr(attention, "q_norm"):
        return False
    ours = drafter.layer
    hidden = drafter.config.hidden_size
    for name in ("q_proj", "k_proj", "v_proj"):
        theirs = attention.get_submodule(name)
        if name != "v_proj" and theirs.bias is not None:
            continue
        weight = ours.self_attn.get_submodule(name).get_parameter("weight")
        weight[:, :hidden] = 0.0  # the embedding's half
        weight[:, hidden:] = theirs.weight.float()
    copy_mlp(ours.mlp, mlp)
    for mine, theirs in (
        (ours.self_attn.o_proj, attention.o_proj),
        (ours.hidden_norm, parts["input_layernorm"]),
        (ours.post_attention_layernorm, parts["post_attention_layernorm"]),
        (drafter.norm, body.norm),
    ):
        mine.weight.copy_(theirs.weight)
    drafter.fc.weight.zero_()
    drafter.fc.weight[:, -hidden:] = torch.eye(hidden)
    return True


@torch.no_grad()
def copy_mlp(mine: MLP, theirs: nn.Module) -> None:
    """Takes over a gated MLP that is as wide or narrower. Units beyond it keep their first weights,
    but nothing reads them yet: the two compute the same."""
    size = theirs.get_submodule("gate_proj").get_parameter("weight").shape[0]
    for name in ("gate_proj", "up_proj"):
        mine.get_submodule(name).get_parameter("weight")[:size] = theirs.get_submodule(name).get_parameter(
            "weight"
        )
    mine.down_proj.weight[:, :size] = theirs.get_submodule("down_proj").get_parameter("weight")
    mine.down_proj.weight[:, size:] = 0.0


@torch.no_grad()
def widened(drafter: Drafter, intermediate_size: int) -> Drafter:
    """A drafter that computes the same, with room to learn more: an MLP of so many units, no fewer."""
    config = drafter.config
    if config.intermediate_size == intermediate_size:
        return drafter
    wide = Drafter(config.model_copy(update={"intermediate_size": intermediate_size}))
    tensors = drafter.state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if ".mlp." not in name}
    wide.load_state_dict({**wide.state_dict(), **kept})
    wide.to(device=drafter.device)
    copy_mlp(wide.layer.mlp, drafter.layer.mlp)
    return wide
