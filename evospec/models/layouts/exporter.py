"""Writes a drafter in a published layout, for vLLM, SGLang and SafeAILab's EAGLE to load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from evospec.errors import EvoSpecError, UnsupportedModelError
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.layouts.checkpoint import MAP, MASK
from evospec.models.layouts.settings import VARIANTS, Layout
from evospec.models.tables import TokenTables
from evospec.models.target import default_tap_layers

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_SPECULATORS_VERSION = "0.3.0"  # the release whose layout this is; readers don't depend on it


@dataclass(frozen=True, slots=True)
class Verifier:
    """The target as the other engine knows it.

    Attributes:
        name: what the engine loads it by: a Hub id or a folder.
        architectures: from its config.json.
        layer_count: decoder layers.
        max_positions: positions it reaches.
        special_ids: end-of-sequence and special tokens, which the exported head always has.
    """

    name: str
    architectures: tuple[str, ...]
    layer_count: int
    max_positions: int
    special_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """What is written: the drafter with the head rows of `token_ids`, rising; None keeps all rows."""

    drafter: Drafter
    tables: TokenTables
    token_ids: np.ndarray | None
    verifier: Verifier
    speculative_tokens: int

    @property
    def rows(self) -> int:
        return self.tables.vocab_size if self.token_ids is None else len(self.token_ids)

    @property
    def max_positions(self) -> int:
        """Readers size their rotary tables by it and index them by the target's positions."""
        return max(self.drafter.config.max_positions, self.verifier.max_positions)


def choose_rows(ordered: np.ndarray, rows: int, vocab_size: int) -> np.ndarray | None:
    """Token ids of the first `rows` in order of need, rising; None when that is the whole vocabulary."""
    if rows >= vocab_size:
        return None
    return np.sort(ordered[:rows])


def write_export(export: Export, layout: Layout, folder: Path) -> None:
    """Writes weights (bfloat16) and config.json.

    Raises:
        UnsupportedModelError: the layout can't say what this drafter is.
        EvoSpecError: the folder holds files already, or can't be written.
    """
    config = _config(export, layout)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise EvoSpecError(f"{folder} is not empty: name a new folder")
        save_file(_weights(export, layout), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise EvoSpecError(f"cannot write {folder}: {error}") from None


def _weights(export: Export, layout: Layout) -> dict[str, Tensor]:
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in export.drafter.state_dict().items()
        if name not in ("lm_head.weight", "head_ids")
    }
    if layout == "eagle3":
        weights = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in weights.items()}
    rows, index = export.tables.head, export.tables.head_index()
    if export.token_ids is not None:
        ids = torch.from_numpy(export.token_ids).to(rows.device)
        rows = rows.index_select(0, ids if index is None else index[ids])
        weights[MAP] = (ids - torch.arange(len(ids), device=ids.device)).cpu()
        weights[MASK] = torch.zeros(export.tables.vocab_size, dtype=torch.bool)
        weights[MASK][ids.cpu()] = True
    # A tied head is the embeddings' memory, which safetensors would refuse to write twice.
    weights["lm_head.weight"] = rows.detach().to("cpu", torch.bfloat16).clone().contiguous()
    return weights


def _config(export: Export, layout: Layout) -> dict[str, Any]:
    config = export.drafter.config
    if any(a >= b for a, b in pairwise(config.tap_layers)):
        raise UnsupportedModelError(
            f"the drafter taps layers {list(config.tap_layers)}: other engines read them rising, once each"
        )
    return _speculators(export, config) if layout == "speculators" else _eagle3(export, config)


def _speculators(export: Export, config: DrafterConfig) -> dict[str, Any]:
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": _SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": export.speculative_tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {
                "name_or_path": export.verifier.name,
                "architectures": list(export.verifier.architectures),
            },
        },
        "draft_vocab_size": export.rows,
        "target_hidden_size": config.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(config.tap_layers),
        **config.model_dump(include=set(VARIANTS)),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformer_layer_config": _layer(export, config),
    }


def _eagle3(export: Export, config: DrafterConfig) -> dict[str, Any]:
    if config.tap_layers != default_tap_layers(export.verifier.layer_count):
        raise UnsupportedModelError(
            f"the drafter taps layers {list(config.tap_layers)}, which readers of the eagle3 layout count "
            "differently: export it with --layout speculators"
        )
    raw = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_layer(export, config),
        "draft_vocab_size": export.rows,
        **{name: True for name, used in config.model_dump(include=set(VARIANTS)).items() if used},
    }
    if config.target_hidden_size is not None:
        raw["target_hidden_size"] = config.target_hidden_size
    return raw


def _layer(export: Export, config: DrafterConfig) -> dict[str, Any]:
    """The decoder layer, as a Llama config that every release of transformers reads alike."""
    scaling = config.rope_scaling
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": export.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **scaling.model_dump()},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": "bfloat16",
    }
