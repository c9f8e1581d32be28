from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evospec.config import ModelConfig
from evospec.errors import DrafterMismatchError, ModelNotFoundError, UnsupportedModelError
from evospec.models.fingerprint import fingerprint_target
from evospec.models.inspection import inspect_drafter, inspect_target
from evospec.models.loading import load_model, load_tokenizer
from tests.tiny import TinyFolders, tiny_folders


@pytest.fixture
def folders(tmp_path: Path) -> TinyFolders:
    return tiny_folders(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_has_the_fingerprint_it_has_when_loaded(folders: TinyFolders, dtype: torch.dtype) -> None:
    card = inspect_target(str(folders.target))
    model = load_model(folders.target, dtype, torch.device("cpu"))
    assert card.fingerprint == fingerprint_target(model, load_tokenizer(str(folders.target)))
    assert (card.folder, card.hidden_size, card.vocab_size) == (folders.target, 32, 260)


def test_one_changed_weight_is_another_target(folders: TinyFolders) -> None:
    before = inspect_target(str(folders.target)).fingerprint
    file = folders.target / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1.0
    save_file(weights, file, metadata={"format": "pt"})
    after = inspect_target(str(folders.target)).fingerprint
    assert after.target != before.target
    assert after.tokenizer == before.tokenizer


def test_a_checkpoint_laid_out_otherwise_is_loaded(folders: TinyFolders) -> None:
    before = inspect_target(str(folders.target)).fingerprint
    file = folders.target / "model.safetensors"
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert inspect_target(str(folders.target)).fingerprint == before


def test_what_is_no_causal_model_is_refused(folders: TinyFolders) -> None:
    (folders.target / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UnsupportedModelError, match="no causal LM"):
        inspect_target(str(folders.target))


def test_damaged_weights_are_told(folders: TinyFolders) -> None:
    file = folders.target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        inspect_target(str(folders.target))


def test_drafters_are_checked_against_their_target(folders: TinyFolders, tmp_path: Path) -> None:
    card = inspect_target(str(folders.target))
    own = ModelConfig(target=str(folders.target), drafter=str(folders.drafter))
    assert inspect_drafter(own, card) == folders.drafter
    assert inspect_drafter(own.model_copy(update={"drafter": None}), card) is None
    foreign = tiny_folders(tmp_path / "other", seed=5).drafter
    strict = own.model_copy(update={"drafter": str(foreign)})
    with pytest.raises(DrafterMismatchError, match="not for this target"):
        inspect_drafter(strict, card)
    assert inspect_drafter(strict.model_copy(update={"drafter_check": "shape"}), card) == foreign
