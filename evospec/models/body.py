"""The decoder layers of a target, run over slot caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from evospec.models.kv_cache import KVCache, Window


@dataclass(frozen=True, slots=True)
class BodyOutput:
    """`hidden`: after the final norm [rows, width, hidden]; `tapped`: inputs of the tapped layers, in the
    order asked for, [rows, width, hidden] each."""

    hidden: Tensor
    tapped: list[Tensor]


class Body(Protocol):
    """Decoder layers: token ids [rows, width] at the window's positions, to hidden states."""

    def __call__(
        self, token_ids: Tensor, window: Window, cache: KVCache, taps: Sequence[int]
    ) -> BodyOutput: ...


class TransformersBody:
    """Any model whose attention goes through transformers' interface, called as it is."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model.base_model
        self._sliding_window: int | None = model.config.to_dict().get("sliding_window")
        self._kinds = set(layer_kinds(model))
        self._entering: list[Tensor] = []
        blocks: Any = self._model.layers
        for block in blocks:
            block.register_forward_pre_hook(self._catch)

    def _catch(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._entering.append(args[0])

    def __call__(self, token_ids: Tensor, window: Window, cache: KVCache, taps: Sequence[int]) -> BodyOutput:
        cache.bind(window)
        self._entering.clear()
        masks = {
            kind: window.mask(self._sliding_window if kind == "sliding_attention" else None)
            for kind in self._kinds
        }
        hidden: Tensor = self._model(
            input_ids=token_ids,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=window.positions(),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        tapped = [self._entering[tap] for tap in taps]
        self._entering.clear()
        return BodyOutput(hidden, tapped)


def layer_kinds(model: PreTrainedModel) -> list[str]:
    """Attention kind of each layer, `full_attention` or `sliding_attention`."""
    settings = model.config.to_dict()
    kinds = settings.get("layer_types")
    if kinds:
        return list(kinds)
    # Mistral: every layer slides, when the config names a window at all.
    slides = settings.get("sliding_window") and settings.get("use_sliding_window", True)
    return ["sliding_attention" if slides else "full_attention"] * model.config.num_hidden_layers
