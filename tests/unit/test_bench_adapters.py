"""Adapters on disk, and arms that draft with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evospec.bench import adapters
from evospec.bench.adapters import pieces_of, read_adapter, write_adapter
from evospec.bench.arms import ArmError, parse_arms
from evospec.bench.decode import DecodeBench
from evospec.bench.settings import DecodeSettings
from evospec.config import VocabularyConfig
from evospec.engine.engine import Engine
from evospec.errors import EvoSpecError
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import adapted_linears
from evospec.models.drafter import Drafter
from tests.tiny import TinyFolders, tiny_drafter, tiny_folders, tiny_target
from tests.unit.banks import random_bank, random_deltas


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


def test_an_adapter_is_kept_in_pieces_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = tiny_drafter(tiny_target())
    monkeypatch.setattr(adapters, "PIECE_BYTES", 1000)
    written = AdapterWeights(7, random_deltas(drafter, 0).tensors, bank=random_bank(drafter, 2))
    pieces = write_adapter(written, tmp_path / "kinds")
    assert len(pieces) > 10  # their numbers are not in the order of their names
    assert all(piece.stat().st_size <= 1000 for piece in pieces)
    read = read_adapter(tmp_path / "kinds", drafter)
    assert read.bank is not None
    assert read.bank.kinds == 2
    assert torch.equal(read.bank.routes.centres, random_bank(drafter, 2).routes.centres)
    for name, tensor in written.tensors.items():
        assert torch.equal(read.tensors[name], tensor.bfloat16().float())
    shorter = write_adapter(AdapterWeights(1, {}), tmp_path / "kinds")
    assert pieces_of(tmp_path / "kinds") == shorter
    assert read_adapter(tmp_path / "kinds", drafter).tensors == {}


def test_a_missing_adapter_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvoSpecError, match=r"no adapter .*lora: run the part that learns it"):
        read_adapter(tmp_path / "lora", tiny_drafter(tiny_target()))


def test_arms_name_the_adapters_that_there_are() -> None:
    names = ["evospec+lora", "evospec[context+verification]", "fr-spec:64+lora@tree:3x2x5"]
    _, adapted, sources, tree = parse_arms(names, "chain", ["lora"])
    assert (adapted.text, adapted.policy, adapted.adapter) == ("evospec+lora", "evospec", "lora")
    assert (sources.policy, sources.adapter) == ("evospec[context+verification]", None)
    assert (tree.text, tree.policy, tree.adapter) == (names[2], "fr-spec:64", "lora")
    with pytest.raises((ArmError, EvoSpecError), match=r"unknown vocabulary policy .evospec\+lora."):
        parse_arms(["evospec+lora"], "chain")


def _weights(engine: Engine) -> Tensor:
    assert engine.drafter is not None
    return _weights_of(engine.drafter)


def _weights_of(drafter: Drafter) -> Tensor:
    """Of the first linear layer."""
    return next(iter(adapted_linears(drafter).values())).weight.detach()


def test_adapted_arms_draft_otherwise_and_say_the_same(folders: TinyFolders, tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target())
    write_adapter(AdapterWeights(1, random_deltas(drafter, 3).tensors), tmp_path / "lora")
    write_adapter(AdapterWeights(1, {}, bank=random_bank(drafter, 2)), tmp_path / "kinds")
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text, "domain": "law"}) for text in ("a deed", "a tort")))
    settings = DecodeSettings(
        target=str(folders.target),
        drafter=str(folders.drafter),
        prompts=(file,),
        policies=("full", "full+lora", "full+kinds", "evospec+lora"),
        drafting="chain",
        device="cpu",
        dtype="float32",
        max_tokens=24,
        vocabulary=VocabularyConfig(capacity=128, core=32),
        adapters=(("lora", tmp_path / "lora"), ("kinds", tmp_path / "kinds")),
    )
    bench = DecodeBench.load(settings)
    turns = list(bench.turns())
    runs = {run.name: run for run in bench.results(turns).runs}
    assert all(run.identical_to_plain for run in runs.values())
    assert [(run.policy, run.arm) for run in runs.values()] == [
        ("plain", "none"),
        ("full", "none"),
        ("full", "lora"),
        ("full", "kinds"),
        ("evospec", "lora"),
    ]
    assert runs["full"].share_of_full == 1.0
    own, base = (runs[name].acceptance_length for name in ("full+lora", "full"))
    assert runs["full+lora"].share_of_full == pytest.approx(own / base)
    versions = {ledger.name: ledger.engine.stats.adapter_version for ledger in bench.ledgers}
    assert versions == {"plain": 0, "full": 0, "full+lora": 1, "full+kinds": 1, "evospec+lora": 1}
    weights = {ledger.name: _weights(ledger.engine) for ledger in bench.ledgers if ledger.engine.drafter}
    assert torch.equal(weights["full"], _weights_of(drafter).bfloat16().float())  # as the file has them
    assert not torch.equal(weights["full+lora"], weights["full"])
    assert torch.equal(weights["evospec+lora"], weights["full+lora"])
    unwatched = replace(settings, adapters=())
    with pytest.raises(EvoSpecError, match="unknown vocabulary policy"):
        DecodeBench.load(unwatched)
