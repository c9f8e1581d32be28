"""`evospec export`: our drafters, and converted ones, in the layouts that other engines load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from evospec.cli import app
from evospec.models.drafter_store import load_drafter, save_drafter
from evospec.models.tables import TokenTables
from evospec.models.target import Target
from tests.tiny import TinyFolders, tiny_drafter, tiny_folders, tiny_model, tiny_tokenizer
from tests.unit.published import CPU, LAYERS, LLAMA3, VOCAB, chain_draft, load, published


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    """A target of eight layers and a drafter of ours, both exact in bfloat16."""
    root = tmp_path_factory.mktemp("own")
    folders = tiny_folders(root, layers=LAYERS)
    model = tiny_model(layers=LAYERS).bfloat16()
    model.save_pretrained(folders.target)
    target = Target(model.float(), tiny_tokenizer())
    ranks = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(4))[:50]
    save_drafter(tiny_drafter(target), ranks, folders.drafter)
    return folders


def export(folders: TinyFolders, out: Path, *arguments: str) -> Any:
    command = ("export", str(folders.drafter), "--target", str(folders.target), "--out", str(out))
    return CliRunner().invoke(app, (*command, *arguments))


def own_tables(folders: TinyFolders) -> TokenTables:
    return TokenTables.from_folder(folders.target, torch.float32, CPU)


@pytest.mark.parametrize("layout", ["speculators", "eagle3"])
def test_an_exported_drafter_drafts_as_ours_does_over_the_kept_rows(
    layout: str, own: TinyFolders, tmp_path: Path
) -> None:
    result = export(own, tmp_path / "out", "--layout", layout, "--rows", "90")
    assert result.exit_code == 0, result.stderr
    assert "90 of 260 head rows" in result.stdout
    again, original = load(tmp_path / "out"), load_drafter(own.drafter, torch.float32, CPU)
    ids = again.drafter.head_ids
    kept = set(ids.tolist())
    assert {256, 257, 258, 259} | set(original.core_ranks.tolist()) <= kept
    assert ids.tolist() == sorted(kept)
    tables = own_tables(own)
    reduced = TokenTables(tables.embedding, tables.head[ids], head_ids=ids)
    generator = torch.Generator().manual_seed(6)
    for pairs in (1, 7, 30):
        features = torch.randn(pairs, 96, generator=generator)
        tokens = torch.randint(VOCAB, (pairs,), generator=generator)
        assert chain_draft(again, tables, features, tokens) == chain_draft(
            original, reduced, features, tokens
        )


def test_the_speculators_layout_is_complete(own: TinyFolders, tmp_path: Path) -> None:
    result = export(own, tmp_path / "out", "--rows", "90", "--verifier", "some/target", "--draft-length", "4")
    assert f"vllm serve {tmp_path / 'out'}" in result.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": "some/target",
        "architectures": ["LlamaForCausalLM"],
    }
    method = config["speculators_config"]["proposal_methods"][0]
    assert (method["proposal_type"], method["speculative_tokens"]) == ("greedy", 4)
    assert config["draft_vocab_size"] == 90
    assert config["norm_before_residual"] is False
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    layer = config["transformer_layer_config"]
    assert (layer["vocab_size"], layer["num_hidden_layers"], layer["model_type"]) == (VOCAB, 1, "llama")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in weights if name.startswith("midlayer")]
    assert weights["lm_head.weight"].shape == (90, 32)
    assert weights["d2t"].dtype == torch.int64
    assert weights["t2d"].dtype == torch.bool
    ids = torch.arange(90) + weights["d2t"]
    assert torch.equal(weights["t2d"].nonzero()[:, 0], ids)
    assert torch.equal(weights["lm_head.weight"].float(), own_tables(own).head[ids])


def test_the_eagle3_layout_has_its_names(own: TinyFolders, tmp_path: Path) -> None:
    assert export(own, tmp_path / "out", "--layout", "eagle3", "--rows", "90").exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (config["vocab_size"], config["draft_vocab_size"]) == (VOCAB, 90)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == {*published().weights}


def test_a_whole_head_needs_no_map(own: TinyFolders, tmp_path: Path) -> None:
    assert export(own, tmp_path / "out").exit_code == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["lm_head.weight"].shape == (VOCAB, 32)
    assert not {"d2t", "t2d"} & weights.keys()
    assert load(tmp_path / "out").drafter.config.draft_vocab_size == VOCAB


@pytest.mark.parametrize("policy", ["full", "evospec"])
def test_an_exported_drafter_serves(policy: str, own: TinyFolders, tmp_path: Path) -> None:
    assert export(own, tmp_path / "out", "--rows", "90").exit_code == 0
    models = ("--target", str(own.target), "--device", "cpu", "--dtype", "float32")
    asked = ("--prompt", "hello", "--max-tokens", "20", "--json")
    answers = [
        json.loads(CliRunner().invoke(app, ("generate", *models, *asked, *chosen)).stdout)
        for chosen in (
            ("--drafter", str(own.drafter), "--policy", "plain"),
            ("--drafter", str(tmp_path / "out"), "--policy", policy),
        )
    ]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert answers[1]["cycles"] > 0


def test_a_published_drafter_is_converted_between_the_layouts(own: TinyFolders, tmp_path: Path) -> None:
    made = published(own_embedding=True, rope_scaling=LLAMA3, norm_before_residual=True, norm_output=True)
    made.weights = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in made.weights.items()
    }
    first = TinyFolders(own.target, made.write_eagle3(tmp_path / "published"))
    assert export(first, tmp_path / "speculators", "--layout", "speculators").exit_code == 0
    second = TinyFolders(own.target, tmp_path / "speculators")
    assert export(second, tmp_path / "eagle3", "--layout", "eagle3").exit_code == 0
    converted = load_file(tmp_path / "eagle3" / "model.safetensors")
    assert converted.keys() == made.weights.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in made.weights.items())
    configs = [load(folder).drafter.config for folder in (first.drafter, tmp_path / "eagle3")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "3"), "this drafter's head has 260 rows, 4 of which stand for special tokens"),
        (("--rows", "261"), "this drafter's head has 260 rows"),
        (("--layout", "gguf"), "'gguf'"),
    ],
)
def test_an_export_that_cannot_be_is_told(
    arguments: tuple[str, ...], message: str, own: TinyFolders, tmp_path: Path
) -> None:
    result = export(own, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_export_overwrites_nothing(own: TinyFolders, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    result = export(own, tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.stderr


def test_taps_that_other_engines_would_read_otherwise_are_not_exported(tmp_path: Path) -> None:
    """A target of four layers taps its layer 2 twice; layers 1, 3 and 6 are no default."""
    small = tiny_folders(tmp_path / "small")
    assert "read them rising" in export(small, tmp_path / "a").stderr
    folders = tiny_folders(tmp_path / "large", layers=LAYERS)
    config = json.loads((folders.drafter / "config.json").read_text())
    (folders.drafter / "config.json").write_text(json.dumps({**config, "tap_layers": [1, 3, 6]}))
    assert "--layout speculators" in export(folders, tmp_path / "b", "--layout", "eagle3").stderr
    assert export(folders, tmp_path / "c").exit_code == 0
