"""What of a model decides what serving it takes: its sizes, never its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from services.plan.errors import PlanError

TAPS: Final = 3  # layers of the target whose states make a drafter's features
BYTES: Final = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a target, and of the drafter that `evospec train` makes for it.

    Attributes:
        tied: the head is the embedding; else there are both in memory.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @property
    def pass_parameters(self) -> int:
        """Weights that a pass reads: all layers, and the head."""
        return self.layers * self._layer(self.hidden) + self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Weights in memory."""
        return self.pass_parameters + (0 if self.tied else self.vocab * self.hidden)

    @property
    def drafter_linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each linear layer of the drafter, as in `evospec.models.drafter`."""
        wide = 2 * self.hidden  # embedding and hidden state side by side
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (TAPS * self.hidden, self.hidden),
            (wide, queries),
            (wide, keys),
            (wide, keys),
            (queries, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def drafter_parameters(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.drafter_linears)

    @property
    def kv_bytes(self) -> int:
        """Of one position, target and drafter."""
        return (self.layers + 1) * 2 * self.kv_heads * self.head_dim * BYTES

    def _layer(self, inputs: int) -> int:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = inputs * (queries + 2 * keys) + queries * self.hidden
        return attention + 3 * self.hidden * self.intermediate


_SHAPES = (
    ModelShape("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49_152, tied=True),
    ModelShape("qwen2.5-coder-0.5b", 24, 896, 4864, 14, 2, 64, 151_936, tied=False),
    ModelShape("qwen2.5-coder-1.5b", 28, 1536, 8960, 12, 2, 128, 151_936, tied=False),
    ModelShape("gemma3-270m", 18, 640, 2048, 4, 1, 256, 262_144, tied=True),
    ModelShape("llama-3-8b", 32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
    ModelShape("gemma-3-27b", 62, 5376, 21_504, 32, 16, 128, 262_208, tied=True),
)
SHAPES: Mapping[str, ModelShape] = MappingProxyType({one.name: one for one in _SHAPES})


def shape_of(name: str) -> ModelShape:
    """Sizes of a model named as in SHAPES, or by a `config.json` of transformers, or its folder.

    Raises:
        PlanError: there is none, or it lacks a size.
    """
    if name in SHAPES:
        return SHAPES[name]
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise PlanError(
            f"no sizes of {name!r}: name a model's config.json or its folder, or one of {', '.join(SHAPES)}"
        )
    return _read(file)


def _read(file: Path) -> ModelShape:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{file} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise PlanError(f"{file} is no JSON object")
    sizes: dict[str, Any] = content.get("text_config") or content  # of models that see as well
    heads, hidden = _size(sizes, "num_attention_heads", file), _size(sizes, "hidden_size", file)
    return ModelShape(
        name=str(file.parent.name if file.name == "config.json" else file.stem),
        layers=_size(sizes, "num_hidden_layers", file),
        hidden=hidden,
        intermediate=_size(sizes, "intermediate_size", file),
        heads=heads,
        kv_heads=_size(sizes, "num_key_value_heads", file, default=heads),
        head_dim=_size(sizes, "head_dim", file, default=hidden // heads),
        vocab=_size(sizes, "vocab_size", file),
        tied=bool(sizes.get("tie_word_embeddings", content.get("tie_word_embeddings", False))),
    )


def _size(sizes: Mapping[str, Any], key: str, file: Path, default: int | None = None) -> int:
    value = sizes.get(key, default)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{file}: {key} is {value!r}, expected a whole number above 0")
    return value
