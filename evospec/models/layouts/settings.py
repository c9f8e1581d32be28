"""config.json of published EAGLE-3 drafters: what it says, and what in it we can't follow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evospec.errors import ModelNotFoundError, UnsupportedModelError
from evospec.models.rope import Llama3Scaling

Layout = Literal["eagle3", "speculators"]

# Where norms are placed: off in EAGLE-3 as published, used by later drafters.
VARIANTS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
_SPECULATORS_KEYS = ("speculators_model_type", "speculators_config")
# Written by speculators beside the layer's own settings, which it nests.
_SPECULATORS_TOP = (
    "draft_vocab_size",
    "target_hidden_size",
    "eagle_aux_hidden_state_layer_ids",
    *VARIANTS,
)
_TAPS = "eagle_aux_hidden_state_layer_ids"


class PublishedSettings(BaseModel):
    """What a published drafter's config says; absent fields have the values that Llama gives them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = Field(ge=1)
    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    taps: tuple[int, ...] | None = None
    verifier: str = ""


def detect_layout(raw: Mapping[str, Any]) -> Layout | None:
    """Which published layout a config.json is of; None: neither, so it should be one of ours."""
    if "tap_layers" in raw:
        return None
    if any(key in raw for key in _SPECULATORS_KEYS):
        return "speculators"
    named = [str(name) for name in raw.get("architectures") or ()]
    if "draft_vocab_size" in raw or any("eagle3" in name.lower() for name in named):
        return "eagle3"
    return None


def read_settings(raw: Mapping[str, Any], layout: Layout, where: Path) -> PublishedSettings:
    """Reads a published config.

    Raises:
        ModelNotFoundError: a setting is missing or no valid value.
        UnsupportedModelError: it asks for something that we would compute differently.
    """
    flat = _flatten_speculators(raw, where) if layout == "speculators" else _flatten_eagle3(raw)
    _refuse_unsupported(flat, where)
    flat.update(_read_rope(flat, where))
    try:
        return PublishedSettings.model_validate(flat)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ModelNotFoundError(f"{where} is not a drafter config: {name}: {first['msg']}") from None


def _flatten_speculators(raw: Mapping[str, Any], where: Path) -> dict[str, Any]:
    kind = raw.get("speculators_model_type")
    if kind != "eagle3":
        raise UnsupportedModelError(
            f"{where}: speculators_model_type {kind!r} is not supported, only 'eagle3' is"
        )
    layer = raw.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise ModelNotFoundError(f"{where} is not a drafter config: transformer_layer_config is missing")
    if raw.get("norm_before_residual") is None:
        # vLLM takes an absent value as true, speculators as false.
        raise UnsupportedModelError(
            f"{where}: norm_before_residual is not set and its readers disagree on the default: "
            "write the value that the drafter was trained with"
        )
    flat = {key: value for key, value in layer.items() if value is not None}
    flat.update({key: raw[key] for key in _SPECULATORS_TOP if raw.get(key) is not None})
    flat["taps"] = flat.pop(_TAPS, None)
    verifier = (raw.get("speculators_config") or {}).get("verifier") or {}
    flat["verifier"] = str(verifier.get("name_or_path") or "")
    return flat


def _flatten_eagle3(raw: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in raw.items() if value is not None}
    nested: dict[str, Any] = flat.pop("eagle_config", {})
    for key in (*VARIANTS, "use_aux_hidden_state", "parallel_drafting"):
        if nested.get(key) is not None:
            flat.setdefault(key, nested[key])
    own, inner = flat.pop(_TAPS, None), nested.get(_TAPS)
    if own is None and inner:
        # SGLang's rule: a list that starts at 1 counts the layers whose outputs are meant.
        own = [layer + 1 for layer in inner] if inner[0] == 1 else inner
    flat["taps"] = own
    return flat


def _refuse_unsupported(flat: Mapping[str, Any], where: Path) -> None:
    def refuse(what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{where}: {what} is not supported")

    if flat.get("hidden_act", "silu") != "silu":
        raise refuse(f"hidden_act {flat['hidden_act']!r}")
    for key in ("attention_bias", "mlp_bias", "qkv_bias", "bias"):
        if flat.get(key):
            raise refuse(f"a drafter with bias terms ({key})")
    for key, plain in (("logit_scale", 1.0), ("partial_rotary_factor", 1.0), ("is_causal", True)):
        if flat.get(key, plain) != plain:
            raise refuse(f"{key} {flat[key]}")
    if flat.get("use_aux_hidden_state") is False:
        raise refuse("a drafter without fused features (use_aux_hidden_state false)")
    if flat.get("parallel_drafting"):
        raise refuse("parallel drafting")
    if flat.get("quantization_config"):
        raise refuse("a quantised drafter (quantization_config)")
    if flat.get("use_sliding_window") or "sliding_attention" in (flat.get("layer_types") or ()):
        raise refuse("sliding-window attention")
    taps = flat.get("taps")
    if taps is not None and (not taps or any(a >= b for a, b in pairwise(taps))):
        raise refuse(f"{_TAPS} {taps}, which does not rise strictly,")


def _read_rope(flat: Mapping[str, Any], where: Path) -> dict[str, Any]:
    parameters = flat.get("rope_parameters") or flat.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModelError(f"{where}: rotary settings per layer type are not supported")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if "mrope_section" in parameters:
        kind = "mrope"
    if kind not in ("default", "llama3"):
        raise UnsupportedModelError(
            f"{where}: rotary scaling {kind!r} is not supported, only 'default' and 'llama3' are"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError(f"{where}: partial_rotary_factor is not supported")
    theta = parameters.get("rope_theta", flat.get("rope_theta", 10_000.0))
    names = Llama3Scaling.model_fields
    scaling = {name: parameters.get(name) for name in names} if kind == "llama3" else None
    return {"rope_theta": theta, "rope_scaling": scaling}
