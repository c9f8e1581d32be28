"""A target's token tables: input embeddings and LM head rows, which drafters share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from evospec.errors import UnsupportedModelError

if TYPE_CHECKING:  # it takes seconds to import, and the aligner needs nothing else of it
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TokenTables:
    """Embeddings [vocab, hidden] and head [rows, hidden] (one tensor when tied).

    Attributes:
        embedding_scale: multiplies embeddings after the look-up (Gemma).
        head_ids: token of each head row, distinct, int64 [rows]; None: row i is token i.
    """

    embedding: Tensor
    head: Tensor
    embedding_scale: float = 1.0
    head_ids: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.head.shape[1]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [...] to embeddings [..., hidden]."""
        vectors = torch.nn.functional.embedding(token_ids, self.embedding)
        return vectors if self.embedding_scale == 1.0 else vectors * self.embedding_scale

    def head_index(self) -> Tensor | None:
        """Head row of each token, -1 where it has none, int64 [vocab]; None: row i is token i."""
        if self.head_ids is None:
            return None
        index = torch.full((self.vocab_size,), -1, dtype=torch.int64, device=self.head_ids.device)
        index[self.head_ids] = torch.arange(len(self.head_ids), device=self.head_ids.device)
        return index

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> TokenTables:
        """Shares the loaded model's tensors; nothing is copied."""
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or "bias" in dict(head.named_parameters()):
            raise UnsupportedModelError(f"{type(model).__name__} has no plain LM head (or one with a bias)")
        embedding = model.get_input_embeddings()
        return cls(
            embedding=embedding.get_parameter("weight").detach(),
            head=head.weight.detach(),
            embedding_scale=_embedding_scale(model.config.to_dict()),
        )

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> TokenTables:
        """Reads the two tables alone from a checkpoint: all that an aligner needs of its target."""
        settings = json.loads((folder / "config.json").read_text())
        embedding = _read_tensor(folder, "model.embed_tokens.weight", dtype, device)
        if embedding is None:
            raise UnsupportedModelError(f"{folder}: no tensor named model.embed_tokens.weight")
        head = _read_tensor(folder, "lm_head.weight", dtype, device)
        return cls(
            embedding=embedding,
            head=embedding if head is None else head,
            embedding_scale=_embedding_scale(settings),
        )


def _embedding_scale(settings: dict[str, object]) -> float:
    if str(settings.get("model_type", "")).startswith("gemma"):
        return math.sqrt(float(str(settings["hidden_size"])))
    return 1.0


def _read_tensor(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in set(tensors.keys()):
                return tensors.get_tensor(name).to(device=device, dtype=dtype)
    return None
