"""Ways to adapt: each starts at the base, travels as an adapter, and is pulled back."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from evospec.align.adaptation import Adaptation, adaptation_of
from evospec.align.fusion import column_scale
from evospec.align.lora import LoraTargets
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot
from evospec.models.drafter import Drafter
from tests.unit.align_tiny import tiny_config, tiny_drafter

WAYS: list[dict[str, object]] = [
    *({"targets": targets, "norms": norms} for targets in get_args(LoraTargets) for norms in (False, True)),
    {"scaling": "rslora"},
    {"method": "full-parameter"},
]


def uneven_drafter() -> Drafter:
    """Its fusion was trained on features of which one is a thousand times the others."""
    drafter = tiny_drafter()
    drafter.fc.weight[:, 5] /= 1000
    return drafter


@torch.no_grad()
def moved(adaptation: Adaptation, size: float = 0.01) -> Adaptation:
    generator = torch.Generator().manual_seed(3)
    for parameter in adaptation.named_parameters().values():
        parameter += size * torch.randn(parameter.shape, generator=generator)
    return adaptation


def away(drafter: Drafter, weights: dict[str, Tensor]) -> float:
    return sum((weights[name] - drafter.get_parameter(name)).norm().item() for name in weights)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_starts_at_the_base_and_travels_as_an_adapter(way: dict[str, object]) -> None:
    drafter = uneven_drafter()
    config = tiny_config(**way)
    adaptation = adaptation_of(config, drafter)
    for name, weight in adaptation.merged().items():
        torch.testing.assert_close(weight, drafter.get_parameter(name))
    merged = moved(adaptation).merged()
    assert away(drafter, merged) > 0.1
    exported = AdapterWeights.from_bytes(adaptation.export(4).to_bytes(), 4, drafter)

    served = uneven_drafter()
    slot = AdapterSlot(served)
    slot.swap(exported)
    for name, weight in served.named_parameters():
        torch.testing.assert_close(weight, merged.get(name, drafter.get_parameter(name)))
    slot.swap(None)
    for name, weight in served.named_parameters():
        assert torch.equal(weight, drafter.get_parameter(name))

    other = adaptation_of(config, uneven_drafter())
    other.load(exported)
    for name, weight in other.merged().items():
        torch.testing.assert_close(weight, merged[name])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_proximal_term_leads_back_to_the_base(way: dict[str, object]) -> None:
    drafter = tiny_drafter()
    adaptation = moved(adaptation_of(tiny_config(**way), drafter))
    before = away(drafter, adaptation.merged())
    adaptation.pull(0.5)
    assert away(drafter, adaptation.merged()) < 0.6 * before


def test_what_is_trained_is_what_the_targets_say() -> None:
    def names(**way: object) -> set[str]:
        return {
            name.rpartition(".")[0] for name in adaptation_of(tiny_config(**way), tiny_drafter()).merged()
        }

    mlp = {f"layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")}
    attention = {f"layers.0.self_attn.{part}_proj" for part in "qkvo"}
    norms = {
        "norm",
        *(f"layers.0.{n}" for n in ("input_layernorm", "hidden_norm", "post_attention_layernorm")),
    }
    assert names(targets="mlp") == mlp
    assert names(targets="fusion-mlp") == mlp | {"fc"}
    assert names(targets="layer") == mlp | attention
    assert names(targets="all", norms=True) == mlp | attention | {"fc"} | norms
    assert names(method="full-parameter") == mlp | attention | {"fc"} | norms


def test_a_step_in_the_fusion_is_as_large_for_loud_features_as_for_others() -> None:
    """An equal move of all trained numbers changes what each feature contributes by as much."""
    drafter = uneven_drafter()
    scale = column_scale(drafter.fc.weight)
    assert scale[5] < 0.01 * scale[6]
    merged = moved(adaptation_of(tiny_config(method="full-parameter"), drafter)).merged()
    change = (merged["fc.weight"] - drafter.fc.weight).norm(dim=0) / scale
    assert change.max() < 3 * change.min()


def test_adapters_of_the_other_kind_are_refused_and_change_nothing() -> None:
    drafter = tiny_drafter()
    full = adaptation_of(tiny_config(method="full-parameter"), drafter)
    lora = adaptation_of(tiny_config(), drafter)
    with pytest.raises(WireError, match="is low-rank, this aligner trains all parameters"):
        full.load(moved(adaptation_of(tiny_config(), drafter)).export(2))
    with pytest.raises(WireError, match="which this aligner does not train"):
        lora.load(moved(adaptation_of(tiny_config(method="full-parameter"), drafter)).export(2))
    for adaptation in (full, lora):
        assert away(drafter, adaptation.merged()) < 1e-3


def test_whole_deltas_that_do_not_fit_are_refused() -> None:
    drafter = tiny_drafter()
    pair = {
        f"fc.{part}": torch.zeros(shape)
        for part, shape in (("lora_a", (2, drafter.fc.in_features)), ("lora_b", (drafter.fc.out_features, 2)))
    }
    wrong = {
        "has shape": {"norm.weight.delta": torch.zeros(3)},
        "no place for": {"embed_tokens.weight.delta": torch.zeros(3, 3)},
        "NaN": {"norm.weight.delta": torch.full((32,), torch.nan)},
        "LoRA matrices and a whole delta": pair | {"fc.weight.delta": torch.zeros_like(drafter.fc.weight)},
        "is an adaptation": {"norm.weight.delta": torch.full((32,), 1e4)},
    }
    for message, tensors in wrong.items():
        with pytest.raises(WireError, match=message):
            AdapterSlot(drafter).stage(AdapterWeights(1, tensors))
