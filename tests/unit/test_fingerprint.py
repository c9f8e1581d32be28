"""A fingerprint names a checkpoint: the same however it is loaded, another for any other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AddedToken, LlamaForCausalLM

from evospec.models.fingerprint import fingerprint_target
from tests.tiny import tiny_model, tiny_tokenizer

PARAMETERS = [name for name, _ in tiny_model(layers=2).named_parameters()]


def target_hash(model: LlamaForCausalLM) -> str:
    return fingerprint_target(model, tiny_tokenizer()).target


def test_same_checkpoint_agrees_in_float32_and_bfloat16(tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    loads = [
        LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    assert target_hash(loads[0]) == target_hash(loads[1])


def test_float32_checkpoint_agrees_when_it_is_rounded_on_load(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    loads = [
        LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    assert target_hash(loads[0]) == target_hash(loads[1])


def test_hashes_are_short_and_hexadecimal() -> None:
    fingerprint = fingerprint_target(tiny_model(), tiny_tokenizer())
    assert len(fingerprint.target) == len(fingerprint.tokenizer) == 16
    int(fingerprint.target, 16)
    int(fingerprint.tokenizer, 16)


@pytest.mark.parametrize("changed", PARAMETERS)
def test_any_changed_tensor_shows(changed: str) -> None:
    model = tiny_model(layers=2)
    before = target_hash(model)
    with torch.no_grad():
        model.get_parameter(changed).mul_(1.1)
    assert target_hash(model) != before


def test_other_shape_shows() -> None:
    assert target_hash(tiny_model(layers=2)) != target_hash(tiny_model(layers=3))


def test_same_weights_under_another_head_count_show() -> None:
    model = tiny_model()
    before = target_hash(model)
    model.config.num_attention_heads = 8
    assert target_hash(model) != before


def test_tokenizer_does_not_depend_on_the_weights() -> None:
    one = fingerprint_target(tiny_model(seed=0), tiny_tokenizer())
    other = fingerprint_target(tiny_model(seed=1), tiny_tokenizer())
    assert one.tokenizer == other.tokenizer
    assert one.target != other.target


def test_added_token_shows() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    before = fingerprint_target(model, tokenizer).tokenizer
    tokenizer.add_tokens(["patient"])
    assert fingerprint_target(model, tokenizer).tokenizer != before


def test_what_tokens_are_for_does_not_show() -> None:
    """Releases of transformers read that differently from one GGUF file."""
    model = tiny_model()
    hashes = set()
    for special in (False, True):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([AddedToken("<|tool|>", special=special)])
        hashes.add(fingerprint_target(model, tokenizer).tokenizer)
        tokenizer.eos_token = "<|user|>"
        hashes.add(fingerprint_target(model, tokenizer).tokenizer)
    assert len(hashes) == 1


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert fingerprint_target(model, loaded).tokenizer == fingerprint_target(model, tokenizer).tokenizer
