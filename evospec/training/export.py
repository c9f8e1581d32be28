"""Writes a drafter into a folder that may hold an older one, file by file, each whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

from evospec.models.drafter import Drafter
from evospec.models.drafter_store import CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, save_drafter
from evospec.training.disk import replacing

_BESIDE = ".export"


def export_drafter(drafter: Drafter, core_ranks: Tensor, folder: Path) -> None:
    """As `save_drafter`, but the drafter that `folder` holds stays until the new one is on the disk.

    Config and ranks of a run are always the same, so that an interruption between two files
    leaves a drafter that fits together. The config comes last: with it, the folder is a drafter.

    Raises:
        OSError, SafetensorError: it can't be written.
    """
    beside = folder / _BESIDE
    try:
        save_drafter(drafter, core_ranks, beside)
        for name in (VOCABULARY_FILE, WEIGHTS_FILE, CONFIG_FILE):
            with replacing(folder / name) as partial:
                (beside / name).replace(partial)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
