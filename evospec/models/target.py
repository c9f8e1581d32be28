"""The target: a Hugging Face causal LM whose KV cache, masks and head are driven by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evospec.errors import UnsupportedModelError
from evospec.models.attention import causal_mask
from evospec.models.fingerprint import TargetFingerprint, fingerprint_target
from evospec.models.kv_cache import KVCache, Window
from evospec.models.tables import TokenTables

_LAYER_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """One pass over [rows, width] tokens.

    Attributes:
        hidden: last hidden states after the final norm [rows, width, hidden].
        features: the tapped hidden states, concatenated [rows, width, taps * hidden];
            None when nothing is tapped.
    """

    hidden: Tensor
    features: Tensor | None


@dataclass(slots=True)
class _Taps:
    """Hidden states entering the tapped layers, caught by hooks during a pass."""

    layers: tuple[int, ...]
    caught: dict[int, Tensor] = field(default_factory=dict)

    def fuse(self) -> Tensor | None:
        if not self.layers:
            return None
        return torch.cat([self.caught[layer] for layer in self.layers], dim=-1)


class Target:
    """Runs a causal LM over slot caches and taps hidden states for the drafter.

    Raises:
        UnsupportedModelError: the model's attention does not go through
            transformers' attention interface, or its state can't be rolled back.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        _check_supported(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        config = model.config
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.layer_count: int = config.num_hidden_layers
        self.max_length: int = config.max_position_embeddings
        self.eos_ids = _eos_ids(model, tokenizer)
        self.tables = TokenTables.from_model(model)
        self.fingerprint: TargetFingerprint = fingerprint_target(model, tokenizer)
        self._logit_softcap: float | None = config.to_dict().get("final_logit_softcapping")
        self._body: nn.Module = model.base_model
        self._sliding_window: int | None = None
        self._layer_kinds: set[str] = {"full_attention"}
        self._read_layer_kinds(config.to_dict())
        self._taps = _Taps(())

    @property
    def device(self) -> torch.device:
        return self.tables.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tables.head.dtype

    def tap(self, layers: Sequence[int]) -> None:
        """From now on, passes also yield the hidden states entering these layers. Call once.

        Raises:
            UnsupportedModelError: there is no such layer.
        """
        blocks = self._body.layers
        if not isinstance(blocks, nn.ModuleList):
            raise UnsupportedModelError(f"{type(self.model).__name__} does not list its decoder layers")
        self._taps = _Taps(tuple(layers))
        for layer in layers:
            if not 0 <= layer < len(blocks):
                raise UnsupportedModelError(
                    f"tap layer {layer} does not exist: {type(self.model).__name__} has {len(blocks)} layers"
                )
            blocks[layer].register_forward_pre_hook(_catcher(self._taps, layer))

    def new_cache(self, slots: int, positions: int) -> KVCache:
        config = self.model.config
        head_dim = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
        layers = [(config.num_key_value_heads, head_dim)] * self.layer_count
        return KVCache(layers, slots, positions, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, window: Window, cache: KVCache) -> TargetOutput:
        """Runs `token_ids` [rows, width] at the window's positions, writing the cache there."""
        cache.bind(window)
        hidden = self._body(
            input_ids=token_ids,
            attention_mask=self._masks(window),
            position_ids=window.positions(),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return TargetOutput(hidden=hidden, features=self._taps.fuse())

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Full-vocabulary logits [..., vocab], float32, of hidden states [..., hidden]."""
        logits = (hidden @ self.tables.head.T).float()
        if self._logit_softcap is not None:
            logits = torch.tanh(logits / self._logit_softcap) * self._logit_softcap
        return logits

    def _masks(self, window: Window) -> Tensor | dict[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for kind in self._layer_kinds:
            sliding = self._sliding_window if kind == "sliding_attention" else None
            masks[kind] = causal_mask(window.starts, window.width, window.span, sliding)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _read_layer_kinds(self, settings: dict[str, Any]) -> None:
        window = settings.get("sliding_window")
        kinds = settings.get("layer_types")
        if kinds is None:
            # Mistral: every layer slides, when the config names a window at all.
            kinds = ["sliding_attention"] if window and settings.get("use_sliding_window", True) else []
        if kinds:
            self._layer_kinds = set(kinds)
        self._sliding_window = window


def _catcher(taps: _Taps, layer: int) -> Any:
    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        taps.caught[layer] = args[0]

    return catch


def default_tap_layers(layer_count: int) -> tuple[int, int, int]:
    """Low, middle and high layer whose inputs EAGLE-3 fuses (2503.01840; same indices as vLLM)."""
    if layer_count < 3:
        return (0, layer_count // 2, layer_count - 1)
    return (min(2, layer_count - 1), layer_count // 2, max(layer_count - 3, 0))


def _check_supported(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not model._supports_attention_backend:
        raise UnsupportedModelError(
            f"{name} does not use transformers' attention interface: its KV cache can't be rolled back"
        )
    settings = model.config.to_dict()
    foreign = set(settings.get("layer_types") or ()) - _LAYER_KINDS
    if foreign:
        raise UnsupportedModelError(
            f"{name} has {', '.join(sorted(foreign))} layers, whose state can't be rolled back"
        )
    if settings.get("attn_logit_softcapping"):
        raise UnsupportedModelError(f"{name} soft-caps attention scores, which is not supported")


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set()
    for source in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        if isinstance(source, int):
            found.add(source)
        elif source is not None:
            found.update(source)
    return frozenset(found)
