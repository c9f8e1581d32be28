"""The tensors of a published drafter, under one set of names whatever the layout calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from evospec.errors import ModelNotFoundError

MAP = "d2t"  # offset from each draft id to its token id
MASK = "t2d"  # which token ids have a draft id

# Training leaves copies of the target's own layers behind; positions are computed, not stored.
_UNUSED = ("verifier_lm_head.", "verifier_norm.")
_UNUSED_ENDS = (".rotary_emb.inv_freq",)

_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "weights = torch.load('pytorch_model.bin', weights_only=True); "
    "save_file({name: tensor.contiguous() for name, tensor in weights.items()}, 'model.safetensors')\""
)


@dataclass(frozen=True, slots=True)
class _Place:
    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Safetensors files of a folder, described without reading them."""

    folder: Path
    places: Mapping[str, _Place]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Raises ModelNotFoundError: no safetensors are there, or they can't be read."""
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelNotFoundError(_no_safetensors(folder))
        places: dict[str, _Place] = {}
        try:
            for file in files:
                with safe_open(file, framework="pt") as tensors:
                    names = tensors.keys()
                    for name in names:
                        shape = tuple(tensors.get_slice(name).get_shape())
                        places[_common_name(name)] = _Place(file, name, shape)
        except (OSError, SafetensorError) as error:
            raise ModelNotFoundError(f"drafter {folder} cannot be read: {error}") from None
        return cls(folder, {name: place for name, place in places.items() if not _is_unused(name)})

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].shape

    def read(self, name: str) -> Tensor:
        """Raises ModelNotFoundError: the file is damaged."""
        place = self.places[name]
        try:
            with safe_open(place.file, framework="pt") as tensors:
                tensor: Tensor = tensors.get_tensor(place.name)
        except (OSError, SafetensorError) as error:
            raise ModelNotFoundError(f"drafter {self.folder} cannot be read: {error}") from None
        return tensor


def _common_name(name: str) -> str:
    name = name.removeprefix("model.")
    return "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name


def _is_unused(name: str) -> bool:
    return name.startswith(_UNUSED) or name.endswith(_UNUSED_ENDS)


def _no_safetensors(folder: Path) -> str:
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    found = f" but {', '.join(pickled)}, a pickle, which may run code when it is read" if pickled else ""
    return f"drafter {folder} has no *.safetensors{found}; where you trust it, convert it once: {_CONVERT}"
