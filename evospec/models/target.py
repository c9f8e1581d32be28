"""The target: a Hugging Face causal LM whose KV cache, masks and head are driven by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evospec.errors import UnsupportedModelError
from evospec.models.body import Body, TransformersBody
from evospec.models.decoder import DecoderBody
from evospec.models.fingerprint import TargetFingerprint, fingerprint_target
from evospec.models.kv_cache import KVCache, Window
from evospec.models.ops import layer_ops
from evospec.models.projection import Projection
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
        self._body: Body = _build_body(model)
        self._head = Projection(self.tables.head)
        self._taps: tuple[int, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.tables.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tables.head.dtype

    def tap(self, layers: Sequence[int]) -> None:
        """From now on, passes also yield the hidden states entering these layers.

        Raises:
            UnsupportedModelError: there is no such layer.
        """
        for layer in layers:
            if not 0 <= layer < self.layer_count:
                raise UnsupportedModelError(
                    f"tap layer {layer} does not exist: {type(self.model).__name__} "
                    f"has {self.layer_count} layers"
                )
        self._taps = tuple(layers)

    def new_cache(self, slots: int, positions: int) -> KVCache:
        config = self.model.config
        return KVCache(
            layers=self.layer_count,
            kv_heads=config.num_key_value_heads,
            head_dim=_head_dim(self.model),
            slots=slots,
            positions=positions,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, window: Window, cache: KVCache) -> TargetOutput:
        """Runs `token_ids` [rows, width] at the window's positions, writing the cache there."""
        output = self._body(token_ids, window, cache, self._taps)
        features = torch.cat(output.tapped, dim=-1) if output.tapped else None
        return TargetOutput(hidden=output.hidden, features=features)

    @torch.inference_mode()
    def scores(self, hidden: Tensor) -> Tensor:
        """Full-vocabulary logits [..., vocab] of hidden states [..., hidden], in the model's own type."""
        scores = self._head(hidden)
        if self._logit_softcap is not None:
            capped = torch.tanh(scores.float() / self._logit_softcap) * self._logit_softcap
            scores = capped.to(scores.dtype)
        return scores

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """The same in float32."""
        return self.scores(hidden).float()


def default_tap_layers(layer_count: int) -> tuple[int, int, int]:
    """Low, middle and high layer whose inputs EAGLE-3 fuses (2503.01840; same indices as vLLM)."""
    if layer_count < 3:
        return (0, layer_count // 2, layer_count - 1)
    return (min(2, layer_count - 1), layer_count // 2, max(layer_count - 3, 0))


def _build_body(model: PreTrainedModel) -> Body:
    """The fastest body that is right for this model."""
    if not DecoderBody.knows(model):
        return TransformersBody(model)
    return DecoderBody(model, layer_ops(model.device, _head_dim(model)))


def _head_dim(model: PreTrainedModel) -> int:
    config = model.config
    head_dim: int | None = config.to_dict().get("head_dim")
    return head_dim or config.hidden_size // config.num_attention_heads


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
