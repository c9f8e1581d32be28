"""Published EAGLE-3 checkpoints: read as they are, and decoded exactly."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

import evospec.engine.settling as settling_module
from evospec.align.build import check_alignable
from evospec.config import Config, EngineConfig, ModelConfig, VocabularyConfig
from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.decoding.draft import Draft
from evospec.decoding.sampling import SamplingBatch
from evospec.decoding.verify import Verdict, verify
from evospec.engine.build import build_engine, load_own_drafter
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError, ModelNotFoundError, UnsupportedModelError
from evospec.models import loading
from evospec.models.attention import ATTENTION_NAME
from evospec.models.draft_body import DraftBody
from evospec.models.drafter import Drafter
from evospec.models.drafter_store import load_drafter, resolve_drafter, save_drafter
from evospec.models.rope import Llama3Scaling, rope_table
from evospec.models.target import Target
from evospec.vocab.head_rows import HeadView
from evospec.vocab.policy import build_policy
from evospec.vocab.protocol import Ranked
from tests.tiny import tiny_target, tiny_tokenizer
from tests.unit.published import (
    CPU,
    EOS,
    LAYERS,
    LLAMA3,
    STEPS,
    VOCAB,
    Published,
    Reference,
    chain_draft,
    llama3_frequencies,
    load,
    published,
    target_tables,
)
from tests.unit.sampling_toys import batch, mistold, p_value

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen": {"heads": 4, "head_dim": 16, "rope_theta": 1_000_000.0, "rows": 120},
    "llama3 rope": {"rope_theta": 500_000.0, "rope_scaling": LLAMA3},
    "full head of its own": {"rows": VOCAB},
    "the target's head": {"rows": None},
    "own embeddings": {"own_embedding": True},
    "norm before residual": {"norm_before_residual": True},
    "norm before fc": {"norm_before_fc": True},
    "a norm per layer": {"fc_norm": True},
    "normed output": {"norm_output": True},
    "narrower than its target": {"hidden": 16, "target_hidden_size": 32, "own_embedding": True},
}


def write(made: Published, layout: str, folder: Path) -> Path:
    return made.write_eagle3(folder) if layout == "eagle3" else made.write_speculators(folder)


# --- reading ---


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_drafts_are_those_of_the_reference(variant: dict[str, Any], layout: str, tmp_path: Path) -> None:
    made = published(**variant)
    tables = target_tables()
    loaded = load(write(made, layout, tmp_path / "drafter"))
    reference = Reference(made, tables.embedding, tables.head)
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for pairs in (1, 2, 9, 40):
        features = torch.randn(pairs, 96, generator=generator)
        tokens = torch.randint(VOCAB, (pairs,), generator=generator)
        expected = reference.draft(features, tokens, STEPS)
        assert chain_draft(loaded, tables, features, tokens) == expected
        seen |= set(expected)
    assert len(seen) > 5


@pytest.mark.parametrize(
    "flag", ["norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "rope_scaling", "rope_theta"]
)
def test_each_variant_shows_in_the_drafts(flag: str) -> None:
    """The comparison with the reference could not see a flag that changes nothing."""
    values = {"rope_scaling": LLAMA3, "rope_theta": 50.0}
    settings_: dict[str, Any] = {flag: values.get(flag, True)}
    made = published(**settings_)
    plain = Published(
        {**made.config, flag: {"rope_scaling": None, "rope_theta": 10_000.0}.get(flag, False)}, made.weights
    )
    tables = target_tables()
    features, tokens = torch.randn(40, 96, generator=torch.Generator().manual_seed(2)), torch.arange(40)
    with_flag = Reference(made, tables.embedding, tables.head).draft(features, tokens, 24)
    assert with_flag != Reference(plain, tables.embedding, tables.head).draft(features, tokens, 24)


def qwen(kind: str) -> Target:
    """A random Qwen target of eight layers; Qwen2 has biases, Qwen3 norms queries and keys."""
    torch.manual_seed(3)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "eos_token_id": EOS,
        "attn_implementation": ATTENTION_NAME,
    }
    if kind == "qwen2":
        return Target(Qwen2ForCausalLM(Qwen2Config(**shape)).eval(), tiny_tokenizer())
    return Target(Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape)).eval(), tiny_tokenizer())


TARGETS: dict[str, Callable[[], Target]] = {
    "llama": lambda: tiny_target(layers=LAYERS),
    "qwen2": lambda: qwen("qwen2"),
    "qwen3": lambda: qwen("qwen3"),
}
TAPS = {"default": None, "explicit": [1, 3, 6]}


@pytest.mark.parametrize("taps", TAPS.values(), ids=TAPS.keys())
@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_an_engine_drafts_from_the_layers_and_tokens_that_the_layout_means(
    make: Callable[[], Target], taps: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = published(eagle_aux_hidden_state_layer_ids=taps, rope_theta=1_000_000.0)
    folder = made.write_speculators(tmp_path / "drafter")
    target = make()
    drafts: list[Draft] = []

    def watch(draft: Draft, *target_side: Any) -> Verdict:
        drafts.append(draft)
        return verify(draft, *target_side)

    monkeypatch.setattr(settling_module, "verify", watch)
    engine = engine_of(target, folder, "full")
    prompt = [7, 90, 14, 200, 33, 5, 61]
    engine.admit(Request("a", tuple(prompt), SamplingParams(max_tokens=STEPS + 2)))
    first = next(token for output in engine.step() for token in output.tokens)

    with torch.inference_mode():
        states = make().model.eval()
        states.set_attn_implementation("sdpa")
        outputs = states(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    layers = taps or [2, LAYERS // 2, LAYERS - 3]
    features = torch.cat([outputs[layer][0] for layer in layers], dim=-1)  # entering each layer
    reference = Reference(made, target.tables.embedding, target.tables.head)
    expected = reference.draft(features, torch.tensor([*prompt[1:], first]), STEPS)
    assert drafts[0].tokens[0].tolist() == expected


def test_nested_layer_ids_that_start_at_one_count_outputs(tmp_path: Path) -> None:
    """SGLang's two conventions: [1, 3, 6] are the outputs of those layers, [2, 3, 6] the inputs."""
    outputs = published(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 6]})
    inputs = published(eagle_config={"eagle_aux_hidden_state_layer_ids": [2, 3, 6]})
    assert load(outputs.write_eagle3(tmp_path / "a")).drafter.config.tap_layers == (2, 4, 7)
    assert load(inputs.write_eagle3(tmp_path / "b")).drafter.config.tap_layers == (2, 3, 6)


@pytest.mark.parametrize("original", [16, 512, 8192])
def test_llama3_frequencies_are_those_of_transformers(original: int) -> None:
    """The lengths leave no, some and most frequencies as they are."""
    scaling = {**LLAMA3, "original_max_position_embeddings": original}
    ours = {key: value for key, value in scaling.items() if key != "rope_type"}
    table = rope_table(300, 64, 500_000.0, CPU, Llama3Scaling.model_validate(ours))
    angles = torch.arange(300)[:, None] * llama3_frequencies(500_000.0, 64, scaling)
    torch.testing.assert_close(table[0, :, :32], angles.cos(), rtol=0, atol=5e-5)
    torch.testing.assert_close(table[1, :, 32:], angles.sin(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_are_read_in_the_old_and_the_new_style(style: str, tmp_path: Path) -> None:
    theta = {"rope_theta": 123.0}
    written: dict[str, Any] = {"rope_scaling": LLAMA3, **theta}
    if style == "rope_parameters":
        written = {"rope_parameters": {**LLAMA3, **theta}}
    config = load(published(**written).write_eagle3(tmp_path / "d")).drafter.config
    assert config.rope_theta == 123.0
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 8.0


def test_embeddings_equal_to_the_targets_are_shared_and_others_kept() -> None:
    tables = target_tables()
    for same in (True, False):
        made = published(own_embedding=True)
        if same:
            made.weights["embed_tokens.weight"] = tables.embedding.clone()
        drafter = imported(made)
        drafter.share_embedding(tables)
        used = drafter.tables(tables).embedding
        assert (used.data_ptr() == tables.embedding.data_ptr()) is same
        assert torch.equal(used, made.weights["embed_tokens.weight"])


def imported(made: Published) -> Drafter:
    with TemporaryDirectory() as root:
        return load(made.write_eagle3(Path(root) / "d")).drafter


def test_an_imported_drafter_survives_our_own_format(tmp_path: Path) -> None:
    made = published(own_embedding=True, norm_output=True, rope_scaling=LLAMA3)
    made.weights = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in made.weights.items()
    }
    loaded = load(made.write_eagle3(tmp_path / "published"))
    save_drafter(loaded.drafter, torch.arange(10), tmp_path / "own")
    again = load_drafter(tmp_path / "own", torch.float32, CPU)
    assert again.drafter.config == loaded.drafter.config
    assert again.core_ranks.tolist() == list(range(10))
    features, tokens = torch.randn(5, 96, generator=torch.Generator().manual_seed(2)), torch.arange(5)
    tables = target_tables()
    assert chain_draft(again, tables, features, tokens) == chain_draft(loaded, tables, features, tokens)


# --- decoding ---


def settings(drafter: Path, policy: str, target: str = "tiny") -> Config:
    return Config(
        model=ModelConfig(target=target, drafter=str(drafter), device="cpu", dtype="float32"),
        engine=EngineConfig(max_batch=4, max_length=128, draft_length=STEPS, prefill_chunk=16),
        vocabulary=VocabularyConfig(policy=policy, capacity=64, core=24, half_life=4),
    )


def engine_of(target: Target, drafter: Path, policy: str) -> Engine:
    config = settings(drafter, policy)
    return build_engine(config, target, load_own_drafter(config, target))


def decode(engine: Engine, prompts: list[tuple[int, ...]], sampling: SamplingParams) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.admit(Request(str(index), prompt, sampling))
    while engine.has_work:
        for output in engine.step():
            written[int(output.request_id)] += output.tokens
    return written


PROMPTS = [tuple((7 * i * i + 3 * j) % 256 for j in range(3 + 5 * i)) for i in range(8)]


@pytest.mark.parametrize("policy", ["full", "fr-spec:40", "fr-spec:100000", "evospec"])
@pytest.mark.parametrize(
    "variant", ["llama", "own embeddings", "narrower than its target", "the target's head"]
)
def test_greedy_output_is_the_targets_own(variant: str, policy: str, tmp_path: Path) -> None:
    folder = published(**VARIANTS[variant]).write_eagle3(tmp_path / "drafter")
    target = tiny_target(layers=LAYERS)
    plain = build_engine(settings(folder, policy), target, None)
    expected = decode(plain, PROMPTS, SamplingParams(max_tokens=30))
    engine = engine_of(tiny_target(layers=LAYERS), folder, policy)
    assert decode(engine, PROMPTS, SamplingParams(max_tokens=30)) == expected
    assert engine.stats.draft_tokens > 0


def test_tokens_outside_the_head_count_as_uncovered(tmp_path: Path) -> None:
    made = published(rows=100)
    engine = engine_of(tiny_target(layers=LAYERS), made.write_eagle3(tmp_path / "d"), "full")
    head = set(made.token_ids.tolist())
    for index, prompt in enumerate(PROMPTS):
        engine.admit(Request(str(index), prompt, SamplingParams(max_tokens=30)))
    drafted: list[int] = []
    while engine.has_work:
        drafted += [token for output in engine.step() if output.drafted for token in output.tokens]
    assert engine.stats.active_rows == 100
    assert engine.stats.coverable_tokens == len(drafted)
    assert engine.stats.covered_tokens == sum(token in head for token in drafted)
    assert 0 < engine.stats.covered_tokens < engine.stats.coverable_tokens


@pytest.mark.parametrize("policy", ["full", "fr-spec:40", "evospec"])
def test_a_policy_chooses_among_the_drafters_own_rows(policy: str) -> None:
    made = published(rows=100)
    drafter = imported(made)
    tables = drafter.tables(target_tables())
    config = VocabularyConfig(policy=policy, capacity=64, core=24, half_life=4)
    uncovered = int((~made.weights["t2d"]).nonzero()[0])
    ranks = np.array([uncovered, int(made.token_ids[70])])
    vocabulary = build_policy(config, tables, ranks, [EOS, uncovered], max_batch=1)
    vocabulary.admit(Request("a", tuple(range(256))))
    vocabulary.ranked(Ranked(["a"], [1], np.arange(VOCAB)[None]))
    vocabulary.retrieved([uncovered, int(made.token_ids[71])], [1.0, 1.0])
    vocabulary.apply()
    head = vocabulary.head()
    assert head.ids is not None
    assert set(head.ids.tolist()) <= set(made.token_ids.tolist())
    index = tables.head_index()
    assert index is not None
    assert torch.equal(head.rows, made.weights["lm_head.weight"][index[head.ids]])
    active = head.active
    assert active is not None
    assert set(active.nonzero().flatten().tolist()) == set(head.ids.tolist())
    assert active[EOS]
    assert active[int(made.token_ids[70])]
    assert head.count == {"full": 100, "fr-spec:40": 41, "evospec": 64}[policy]


def test_a_sampled_draft_carries_the_map_of_its_own_head() -> None:
    made = published(rows=100)
    drafter = imported(made)
    tables = drafter.tables(target_tables())
    draft = ChainDrafter(DraftBody(drafter), tables).draft(
        DraftRoot(
            hidden=torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0)),
            starts=torch.zeros(3, dtype=torch.int64),
            lengths=torch.full((3,), STEPS),
            drawn=torch.zeros(3, dtype=torch.int64),
            longest_context=0,
        ),
        STEPS,
        HeadView(tables.head, tables.head_ids),
        drafter.new_cache(3, STEPS + 1),
        SamplingBatch.of([SamplingParams(temperature=1.0, seed=seed) for seed in range(3)], CPU),
    )
    proposal = draft.proposal
    assert proposal is not None
    assert proposal.row_ids is not None
    assert torch.equal(proposal.row_ids, made.token_ids)
    assert torch.equal(made.token_ids[proposal.choices], draft.tokens)
    assert proposal.probabilities.shape == (3, STEPS, 100)


def test_sampled_tokens_follow_the_target_when_the_drafter_has_its_own_head() -> None:
    """One drafted position, 40,000 draws; the target puts mass on tokens that the head lacks."""
    draws, params = 40_000, SamplingParams(temperature=1.0)
    made = published(rows=100)
    drafter = imported(made)
    tables = drafter.tables(target_tables())
    generator = torch.Generator().manual_seed(8)
    hidden = torch.randn(1, 1, 32, generator=generator) * 0.3
    wanted = torch.randn(VOCAB, generator=generator)
    sampling = batch(params, draws, first_seed=11)
    draft = ChainDrafter(DraftBody(drafter), tables).draft(
        DraftRoot(
            hidden=hidden.expand(draws, 1, 32),
            starts=torch.zeros(draws, dtype=torch.int64),
            lengths=torch.ones(draws, dtype=torch.int64),
            drawn=torch.zeros(draws, dtype=torch.int64),
            longest_context=0,
        ),
        1,
        HeadView(tables.head, tables.head_ids),
        drafter.new_cache(1, 2),
        sampling,
    )
    logits = wanted.expand(draws, 2, VOCAB)
    verdict = verify(draft, logits, sampling, torch.ones(draws, dtype=torch.int64))
    counts = np.bincount(verdict.tokens[:, 0].numpy(), minlength=VOCAB)
    assert p_value(counts, wanted.softmax(-1).double().numpy()) > 1e-3
    assert 0.1 < verdict.accepted.double().mean() < 0.9
    misread = mistold(draft, torch.arange(100))  # as if the map were the first 100 tokens
    wrong = verify(misread, logits, sampling, torch.ones(draws, dtype=torch.int64))
    counts = np.bincount(wrong.tokens[:, 0].numpy(), minlength=VOCAB)
    assert p_value(counts, wanted.softmax(-1).double().numpy()) < 1e-9


def test_a_published_drafter_is_taken_by_its_shapes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = published().write_speculators(tmp_path / "d")
    with caplog.at_level(logging.WARNING):
        engine_of(tiny_target(layers=LAYERS), folder, "full")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "made for some/target: its shapes fit" in caplog.text


def test_a_drafter_with_its_own_head_is_not_aligned(tmp_path: Path) -> None:
    with pytest.raises(EvoSpecError, match=r"set alignment\.enabled to false"):
        check_alignable(imported(published()).config)
    check_alignable(imported(published(rows=None)).config)


# --- names ---


def test_a_hub_id_names_a_drafter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published().write_eagle3(tmp_path / "d")
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **_: {"some/drafter": str(folder)}[name])
    assert resolve_drafter("some/drafter", "tiny") == folder


def test_a_hub_id_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: object) -> str:
        raise OSError("no connection\nto the Hub")

    monkeypatch.setattr(loading, "snapshot_download", refuse)
    with pytest.raises(ModelNotFoundError, match=r"no drafter at 'some/drafter'.*no connection") as caught:
        resolve_drafter("some/drafter", "tiny")
    assert "\n" not in str(caught.value)


# --- bad input ---


def drop(name: str) -> Callable[[Published], object]:
    return lambda made: made.weights.pop(name)


def put(name: str, tensor: Tensor) -> Callable[[Published], None]:
    return lambda made: made.weights.__setitem__(name, tensor)


def configure(**changes: Any) -> Callable[[Published], None]:
    return lambda made: made.config.update(changes)


def shift_map(made: Published) -> None:
    made.weights["d2t"] = made.weights["d2t"] + 3


def absolute_map(made: Published) -> None:
    made.weights["d2t"] = made.token_ids


def repeat_map(made: Published) -> None:
    made.weights["d2t"][1] = made.weights["d2t"][0] - 1


def poison(made: Published) -> None:
    made.weights["fc.weight"][0, 0] = torch.nan


BROKEN: dict[str, tuple[Callable[[Published], object], str]] = {
    "missing tensor": (drop("midlayer.mlp.up_proj.weight"), r"lacks tensor layers\.0\.mlp\.up_proj\.weight"),
    "missing head": (drop("lm_head.weight"), "lacks tensor lm_head.weight"),
    "missing map": (drop("d2t"), "a head of 100 of 260 tokens but no d2t"),
    "wrong shape": (put("fc.weight", torch.zeros(32, 64)), r"fc\.weight has shape \[32, 64\].*\[32, 96\]"),
    "wrong head": (put("lm_head.weight", torch.zeros(90, 32)), r"lm_head\.weight has shape \[90, 32\]"),
    "wrong map": (put("d2t", torch.zeros(90, dtype=torch.int64)), "d2t must be 100 integers"),
    "map beyond the vocabulary": (shift_map, "d2t and t2d do not describe|outside the vocabulary of 260"),
    "absolute map": (absolute_map, "it must hold offsets"),
    "repeated token": (repeat_map, "two draft ids to the same token"),
    "wrong mask": (put("t2d", torch.zeros(VOCAB, dtype=torch.bool)), "d2t and t2d do not describe"),
    "NaN": (poison, "NaN or infinite"),
    "bias tensor": (put("midlayer.self_attn.q_proj.bias", torch.zeros(32)), r"q_proj\.bias, which"),
    "query norm": (put("midlayer.self_attn.q_norm.weight", torch.ones(8)), r"q_norm\.weight, which"),
    "two layers": (put("layers.1.mlp.up_proj.weight", torch.ones(8)), "more than one decoder layer"),
    "bias setting": (configure(attention_bias=True), "bias terms"),
    "activation": (configure(hidden_act="gelu"), "hidden_act 'gelu'"),
    "yarn": (configure(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rotary scaling 'yarn'"),
    "linear": (configure(rope_scaling={"type": "linear", "factor": 4.0}), "rotary scaling 'linear'"),
    "mrope": (configure(rope_scaling={"type": "default", "mrope_section": [2, 2]}), "'mrope'"),
    "llama3 in part": (configure(rope_scaling={"rope_type": "llama3", "factor": 4.0}), "low_freq_factor"),
    "quantised": (configure(quantization_config={"bits": 4}), "quantised"),
    "no features": (configure(eagle_config={"use_aux_hidden_state": False}), "without fused features"),
    "falling taps": (configure(eagle_aux_hidden_state_layer_ids=[5, 2, 3]), "does not rise"),
    "unnamed size": (configure(hidden_size=None), "hidden_size"),
    "both norms": (configure(norm_before_fc=True, fc_norm=True), "exclude each other"),
    "borrowed tables": (configure(target_hidden_size=64), "needs embeddings and a head of its own"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_checkpoint_we_cannot_follow_is_told_in_one_line(
    change: Callable[[Published], object], message: str, tmp_path: Path
) -> None:
    made = published()
    change(made)
    with pytest.raises(EvoSpecError, match=message) as caught:
        load(made.write_eagle3(tmp_path / "drafter"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(speculators_model_type="peagle"), "'peagle' is not supported"),
        (lambda config: config.pop("speculators_model_type"), "None is not supported"),
        (lambda config: config.pop("transformer_layer_config"), "transformer_layer_config is missing"),
        (lambda config: config.pop("norm_before_residual"), "disagree on the default"),
    ],
)
def test_a_speculators_config_we_cannot_follow_is_told(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    folder = published().write_speculators(tmp_path / "d")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EvoSpecError, match=message):
        load(folder)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = published().write_eagle3(tmp_path / "d")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"pytorch_model\.bin, a pickle.*save_file") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    folder = published().write_eagle3(tmp_path / "d")
    (folder / "model.safetensors").write_bytes(bytes(64))
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="is not a drafter config"):
        load(folder)


def test_a_drafter_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = published(hidden=64).write_eagle3(tmp_path / "d")
    with pytest.raises(EvoSpecError, match=r"hidden 64, vocabulary 260.*the target has hidden 32"):
        engine_of(tiny_target(layers=LAYERS), folder, "full")


def test_taps_beyond_the_target_are_refused(tmp_path: Path) -> None:
    folder = published(eagle_aux_hidden_state_layer_ids=[2, 4, 20]).write_eagle3(tmp_path / "d")
    with pytest.raises(UnsupportedModelError, match="20"):
        engine_of(tiny_target(layers=LAYERS), folder, "full")
