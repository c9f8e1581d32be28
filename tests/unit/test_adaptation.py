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
    {"method": "full-parameter", "publish_rank": 64},  # as much as any layer here has
    {"method": "full-parameter", "publish_rank": 64, "adapters": 2},
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
    assert names(method="full-parameter", publish_rank=4) == mlp | attention | {"fc"} | norms
    assert names(method="full-parameter", publish_rank=4, adapters=2) == mlp | attention | {"fc"}


def test_a_step_in_the_fusion_is_as_large_for_loud_features_as_for_others() -> None:
    """An equal move of all trained numbers changes what each feature contributes by as much."""
    drafter = uneven_drafter()
    scale = column_scale(drafter.fc.weight)
    assert scale[5] < 0.01 * scale[6]
    merged = moved(adaptation_of(tiny_config(method="full-parameter"), drafter)).merged()
    change = (merged["fc.weight"] - drafter.fc.weight).norm(dim=0) / scale
    assert change.max() < 3 * change.min()


def test_adapters_with_what_is_not_trained_are_refused_and_change_nothing() -> None:
    drafter = tiny_drafter()
    layers = {"method": "full-parameter", "publish_rank": 4, "adapters": 2}
    whole = moved(adaptation_of(tiny_config(method="full-parameter"), drafter)).export(2)
    for adaptation in (adaptation_of(tiny_config(), drafter), adaptation_of(tiny_config(**layers), drafter)):
        with pytest.raises(WireError, match=r"adapts .*, which this aligner does not train"):
            adaptation.load(whole)
        assert away(drafter, adaptation.merged()) < 1e-3


@pytest.mark.parametrize("publish_rank", [0, 2])
def test_whole_weights_go_on_from_deltas_of_any_rank(publish_rank: int) -> None:
    drafter = uneven_drafter()
    lora = moved(adaptation_of(tiny_config(norms=True), drafter))
    config = tiny_config(method="full-parameter", publish_rank=publish_rank)
    full = moved(adaptation_of(config, drafter))
    full.load(lora.export(2))
    expected = lora.merged()
    for name, weight in full.merged().items():
        torch.testing.assert_close(weight, expected[name])


def units_lost(drafter: Drafter, merged: dict[str, Tensor], exported: AdapterWeights) -> float:
    """Of the fusion's delta, counted in units of its columns."""
    delta = merged["fc.weight"] - drafter.fc.weight
    return ((delta - exported.general.deltas()["fc.weight"]) / column_scale(drafter.fc.weight)).norm().item()


def test_a_cut_version_has_the_rank_and_little_is_nearer_to_what_was_learned() -> None:
    drafter = uneven_drafter()
    adaptation = moved(adaptation_of(tiny_config(method="full-parameter", publish_rank=3), drafter))
    merged, exported = adaptation.merged(), adaptation.export(4)
    for name in exported.general.linear_names():
        assert exported.tensors[f"{name}.lora_a"].shape[0] == exported.tensors[f"{name}.lora_b"].shape[1] == 3
        if name == "fc":
            continue
        delta = merged[f"{name}.weight"] - drafter.get_parameter(f"{name}.weight")
        lost = (delta - exported.general.deltas()[f"{name}.weight"]).norm().item()
        assert 0 < lost <= 1.02 * torch.linalg.svdvals(delta)[3:].norm().item()
    assert {name for name, delta in exported.general.whole_deltas().items() if delta.any()} == {
        name for name in merged if drafter.get_parameter(name).dim() == 1
    }
    delta = (merged["fc.weight"] - drafter.fc.weight) / column_scale(drafter.fc.weight)
    least = torch.linalg.svdvals(delta)[3:].norm().item()
    assert 0 < units_lost(drafter, merged, exported) <= 1.02 * least
    assert all(torch.equal(weight, merged[name]) for name, weight in adaptation.merged().items())


def test_a_cut_version_that_was_loaded_is_what_is_cut_again() -> None:
    drafter = uneven_drafter()
    config = tiny_config(method="full-parameter", publish_rank=3)
    published = moved(adaptation_of(config, drafter)).export(4)
    other = adaptation_of(config, drafter)
    other.load(published)
    again = other.export(5).general.deltas()
    for name, delta in published.general.deltas().items():
        torch.testing.assert_close(again[name], delta, rtol=1e-4, atol=1e-6)


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
