"""A drafter that begins from its target's last layer computes what that layer would."""

from __future__ import annotations

import torch

from evospec.models.drafter import Drafter
from evospec.models.kv_cache import Window
from evospec.models.unroll import unroll
from evospec.training.pipeline import drafter_config
from evospec.training.warm_start import start_from_target, widened
from tests.tiny import tiny_drafter, tiny_target


def test_the_drafters_layer_is_the_targets_last_one() -> None:
    target = tiny_target()
    config = drafter_config(target, "tiny", longest=512)
    drafter = Drafter(config)
    assert start_from_target(drafter, target)
    tokens = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    target.tap(config.tap_layers)
    window = Window.of([0, 0], 12, torch.device("cpu"))
    features = target.forward(tokens, window, target.new_cache(2, 12)).features
    assert features is not None

    (ours,) = unroll(drafter, features.clone(), target.tables.embed(tokens), 1)
    # The target itself, with the layers from the highest tap to the last left out.
    body = target.model.base_model
    kept = [*range(config.tap_layers[-1]), len(body.layers) - 1]
    body.layers = torch.nn.ModuleList([body.layers[index] for index in kept])
    for index, layer in enumerate(body.layers):
        layer.self_attn.layer_idx = index
    body.config.num_hidden_layers = len(kept)
    target.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, body(tokens).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_layers_of_another_kind_are_not_copied() -> None:
    target = tiny_target()
    drafter = Drafter(drafter_config(target, "tiny", longest=512))
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    target.model.base_model.layers[-1].add_module("pre_feedforward_layernorm", torch.nn.Identity())
    assert not start_from_target(drafter, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in drafter.state_dict().items())


def test_a_wider_mlp_computes_the_same_and_can_learn_more() -> None:
    target = tiny_target()
    narrow = tiny_drafter(target)
    wide = widened(narrow, 2 * narrow.config.intermediate_size)
    assert wide.config == narrow.config.model_copy(
        update={"intermediate_size": 2 * narrow.config.intermediate_size}
    )
    features = torch.randn(2, 5, narrow.config.feature_size)
    embeddings = torch.randn(2, 7, narrow.config.hidden_size)
    pairs = zip(unroll(narrow, features, embeddings, 3), unroll(wide, features, embeddings, 3), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(found, expected)

    *_, last = unroll(wide.requires_grad_(True), features, embeddings, 3)
    last.square().sum().backward()
    new = wide.layer.mlp.down_proj.weight.grad
    assert new is not None
    assert new[:, narrow.config.intermediate_size :].any(dim=0).all()
    assert widened(narrow, narrow.config.intermediate_size) is narrow


def test_a_wider_drafter_starts_from_the_targets_layer_all_the_same() -> None:
    target = tiny_target()
    config = drafter_config(target, "tiny", longest=512)
    narrow, wide = (
        Drafter(config),
        Drafter(config.model_copy(update={"intermediate_size": 3 * config.intermediate_size})),
    )
    assert start_from_target(narrow, target)
    assert start_from_target(wide, target)
    with torch.no_grad():  # what the target's layer has no weights for
        for name in ("q_proj", "k_proj"):
            mine, theirs = (each.layer.self_attn.get_submodule(name) for each in (wide, narrow))
            mine.load_state_dict(theirs.state_dict())
    features = torch.randn(1, 4, config.feature_size)
    embeddings = torch.randn(1, 4, config.hidden_size)
    (expected,), (found,) = (unroll(each, features, embeddings, 1) for each in (narrow, wide))
    torch.testing.assert_close(found, expected)
