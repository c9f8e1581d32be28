"""Adapters on disk, for arms that draft with what an earlier run has learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from evospec.bench.arms import ArmName
from evospec.bench.models import BenchModels
from evospec.config import Config
from evospec.engine.engine import Engine
from evospec.errors import EvoSpecError
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import DELTA, LORA_A, LORA_B
from evospec.models.drafter import Drafter

PIECE_BYTES = 15 << 20  # of a file: larger ones are kept in several
_VERSION = 1


def write_adapter(adapter: AdapterWeights, file: Path) -> list[Path]:
    """Writes FILE.0, FILE.1 and so forth, deltas in bfloat16: what replicas add to weights of that type."""
    halved = {
        name: tensor.bfloat16() if name.endswith((LORA_A, LORA_B, DELTA)) else tensor
        for name, tensor in adapter.contents.items()
    }
    blob = AdapterWeights(_VERSION, halved).to_bytes()
    for old in pieces_of(file):
        old.unlink()
    written = []
    for number, start in enumerate(range(0, len(blob), PIECE_BYTES)):
        piece = file.with_name(f"{file.name}.{number}")
        piece.write_bytes(blob[start : start + PIECE_BYTES])
        written.append(piece)
    return written


def pieces_of(file: Path) -> list[Path]:
    """The files that hold an adapter, in order."""
    found = [piece for piece in file.parent.glob(f"{file.name}.*") if piece.suffix[1:].isdigit()]
    return sorted(found, key=lambda piece: int(piece.suffix[1:]))


def read_adapter(file: Path, drafter: Drafter) -> AdapterWeights:
    """Raises EvoSpecError: it is not there, or does not fit the drafter."""
    pieces = pieces_of(file)
    if not pieces:
        raise EvoSpecError(f"no adapter {file}: run the part that learns it")
    return AdapterWeights.from_bytes(b"".join(piece.read_bytes() for piece in pieces), _VERSION, drafter)


def adapted_engine(name: ArmName, models: BenchModels, config: Config, file: Path) -> Engine:
    """An engine of an arm of ours with a drafter of its own, that has the adapter.

    Raises:
        EvoSpecError: the adapter is not usable.
    """
    if models.drafter is None:
        raise ValueError("models without a drafter have nothing to adapt")
    loaded = replace(models.drafter, drafter=copy.deepcopy(models.drafter.drafter))
    adapter = read_adapter(file, loaded.drafter)
    kinds = 0 if adapter.bank is None else adapter.bank.kinds
    alignment = config.alignment.model_copy(update={"adapters": kinds})
    own = config.model_copy(update={"alignment": alignment})
    engine = replace(models, drafter=loaded).engine(name, own)
    engine.swap_adapter(adapter)
    return engine
