"""The fused kernels compute what the plain operations do.

On a machine with a CUDA device they run there; elsewhere Triton's interpreter runs
them, in float32 only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evospec.kernels.project_many import project_many
from evospec.kernels.sample import sample
from evospec.kernels.tiling import LEAST_BYTES, MOST_TOKENS, tiling
from evospec.models.decoder import DecoderBody
from evospec.models.kernel_ops import KernelOps
from evospec.models.kv_cache import KVCache, Tree, Window
from evospec.models.ops import HeadNorms, HeadShape, Norm, TorchOps
from evospec.models.projection import Projection
from evospec.models.row_choice import RowChoice
from tests.unit.test_decoder_body import FAMILIES, build

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
ROWS = 40_000 if ON_GPU else 480  # of the sampling test; the interpreter takes 20 ms a row


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, reference: Tensor) -> None:
    if ours.dtype is torch.float32:
        torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-5)
        return
    # Other roundings on the way: the whole is near, and no element is off by much.
    ours, reference = ours.float(), reference.float()
    assert float((ours - reference).norm() / reference.norm()) < 1e-2
    torch.testing.assert_close(ours, reference, rtol=2e-2, atol=2e-2 * max(1.0, float(reference.abs().max())))


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scales_wide", [False, True])
@pytest.mark.parametrize("columns", [24, 64, 576])
def test_add_norm(columns: int, scales_wide: bool, dtype: torch.dtype) -> None:
    hidden, change = random(3, 2, columns, dtype=dtype), random(3, 2, columns, dtype=dtype)
    weight = random(columns, dtype=torch.float32 if scales_wide else dtype)
    norm = Norm(weight, 1e-5, scales_wide)
    for delta in (None, change):
        for ours, reference in zip(
            KernelOps().add_norm(hidden, delta, norm), TorchOps().add_norm(hidden, delta, norm), strict=True
        ):
            close(ours, reference)


FEW_AND_MANY = [1, 3, MOST_TOKENS, MOST_TOKENS + 5]


def new_projection(outputs: int, inputs: int, dtype: torch.dtype, *, bias: bool = False) -> Projection:
    weight = (random(outputs, inputs, dtype=torch.float32) / inputs**0.5).to(dtype)
    return Projection(weight, random(outputs, dtype=dtype) if bias else None)


def new_norm(columns: int, dtype: torch.dtype, *, scales_wide: bool = False) -> Norm:
    return Norm(random(columns, dtype=torch.float32 if scales_wide else dtype), 1e-5, scales_wide)


def added(hidden: Tensor, change: Tensor | None) -> Tensor:
    return hidden if change is None else hidden + change


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", FEW_AND_MANY)
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 20), (576, 40), (1100, 9)])
def test_projections(inputs: int, outputs: int, tokens: int, dtype: torch.dtype) -> None:
    """Rows, inputs and tokens that fill no tile; with a bias and without; where a sum is still due."""
    ours, reference = KernelOps(), TorchOps()
    states, change = random(1, tokens, inputs, dtype=dtype), random(1, tokens, inputs, dtype=dtype)
    residual = random(1, tokens, outputs, dtype=dtype)
    for bias in (False, True):
        projection = new_projection(outputs, inputs, dtype, bias=bias)
        norm = new_norm(inputs, dtype, scales_wide=bias)
        close(ours.project(states, projection), reference.project(states, projection))
        for delta in (None, change):
            for mine, other in zip(
                ours.norm_project(states, delta, norm, projection),
                reference.norm_project(states, delta, norm, projection),
                strict=True,
            ):
                close(mine, other)
        for output_norm in (None, new_norm(outputs, dtype)):
            mine = added(*ours.extend(residual, states, projection, output_norm))
            close(mine, added(*reference.extend(residual, states, projection, output_norm)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", FEW_AND_MANY)
@pytest.mark.parametrize("gelu", [False, True])
def test_gates(gelu: bool, tokens: int, dtype: torch.dtype) -> None:
    hidden, change = random(tokens, 1, 72, dtype=dtype), random(tokens, 1, 72, dtype=dtype)
    gate_up, norm = new_projection(2 * 1100, 72, dtype), new_norm(72, dtype)
    for delta in (None, change):
        for mine, other in zip(
            KernelOps().norm_gate(hidden, delta, norm, gate_up, gelu=gelu),
            TorchOps().norm_gate(hidden, delta, norm, gate_up, gelu=gelu),
            strict=True,
        ):
            close(mine, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", FEW_AND_MANY)
def test_projections_of_pairs(tokens: int, dtype: torch.dtype) -> None:
    first, second = random(2, 1, tokens, 576, dtype=dtype)
    norms = (new_norm(576, dtype, scales_wide=True), Norm(random(576, dtype=dtype), 0.1, scales_wide=True))
    projection = new_projection(40, 2 * 576, dtype)
    results = [ops.norm_project_pair(first, second, norms, projection) for ops in (KernelOps(), TorchOps())]
    close(*results)


def new_stack(variants: int, outputs: int, inputs: int, dtype: torch.dtype) -> Projection:
    return Projection((random(variants, outputs, inputs, dtype=torch.float32) / inputs**0.5).to(dtype))


CHOICES = [[2], [3, 0, 3], [2, 2, 0, 1], [1, 3, 0] * 6]  # the last are more tokens than fused kernels take


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{len(choice)} rows")
def test_rows_go_through_the_variants_they_chose(choice: list[int], width: int, dtype: torch.dtype) -> None:
    ours, reference = KernelOps(), TorchOps()
    chosen = RowChoice(torch.tensor(choice, device=DEVICE))
    states, residual = (random(len(choice), width, size, dtype=dtype) for size in (136, 40))
    norms = (new_norm(136, dtype, scales_wide=True), Norm(random(136, dtype=dtype), 0.1, scales_wide=True))
    single = new_stack(4, 40, 136, dtype).by(chosen)
    close(ours.project(states, single), reference.project(states, single))
    for mine, other in zip(
        ours.norm_project(states, None, norms[0], single),
        reference.norm_project(states, None, norms[0], single),
        strict=True,
    ):
        close(mine, other)
    mine = added(*ours.extend(residual, states, single, None))
    close(mine, added(*reference.extend(residual, states, single, None)))
    gated = new_stack(4, 2 * 40, 136, dtype).by(chosen)
    results = [ops.norm_gate(states, None, norms[0], gated, gelu=False)[1] for ops in (ours, reference)]
    close(*results)
    pair, second = new_stack(4, 40, 2 * 136, dtype).by(chosen), random(len(choice), width, 136, dtype=dtype)
    close(*(ops.norm_project_pair(states, second, norms, pair) for ops in (ours, reference)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (5, 1), (9, 5), (70, 2)])
@pytest.mark.parametrize(("outputs", "inputs"), [(9, 24), (70, 130), (33, 1_210)])  # programs share the last
def test_many_tokens_go_through_the_variants_they_chose(
    outputs: int, inputs: int, rows: int, width: int, dtype: torch.dtype
) -> None:
    """Programs whose tokens all chose one, and several; nobody chose one of them."""
    projection, states = new_stack(6, outputs, inputs, dtype), random(rows, width, inputs, dtype=dtype)
    choice = RowChoice(torch.randint(0, 5, (rows,), device=DEVICE))
    ours = project_many(states, projection.stack, choice.variants, choice.order)
    close(ours, projection.by(choice)(states))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_multiplied_as_if_its_variant_were_the_only_one(dtype: torch.dtype) -> None:
    stack, states = new_stack(3, 40, 576, dtype), random(5, 2, 576, dtype=dtype)
    norm, choice = new_norm(576, dtype), RowChoice(torch.tensor([2, 0, 2, 1, 0], device=DEVICE))
    ours = KernelOps()
    chosen = stack.by(choice)
    together, normed = ours.project(states, chosen), ours.norm_project(states, None, norm, chosen)[1]
    for row, variant in enumerate(choice.variants.tolist()):
        only, own = Projection(stack.stack[variant]), slice(row, row + 1)
        alone = ours.project(states[own], only)
        torch.testing.assert_close(together[own], alone, rtol=0.0, atol=0.0 if ON_GPU else 1e-6)
        # A norm's squares are summed in an order that depends on how many tokens there are.
        close(normed[own], ours.norm_project(states[own], None, norm, only)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_alone_is_multiplied_as_it_is_among_others(dtype: torch.dtype) -> None:
    projection, states = new_projection(40, 576, dtype), random(6, 1, 576, dtype=dtype)
    together = KernelOps().project(states, projection)
    alone = torch.cat([KernelOps().project(token, projection) for token in states.split(1)])
    # The interpreter multiplies by NumPy, which orders sums by the number of rows.
    torch.testing.assert_close(alone, together, rtol=0.0, atol=0.0 if ON_GPU else 1e-6)


@pytest.mark.parametrize("outputs", [9, 576, 4864, 151_936])
@pytest.mark.parametrize("inputs", [24, 896, 4864, 18_944])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tilings_order_sums_alike_for_any_number_of_tokens(outputs: int, inputs: int, itemsize: int) -> None:
    tilings = [
        tiling(outputs, inputs, tokens=tokens, itemsize=itemsize, shared=shared, weights=2, states=2)
        for tokens in (1, 3, 16)
        for shared in (LEAST_BYTES, 2 * LEAST_BYTES)
    ]
    assert len({(tiles.parts, tiles.part) for tiles in tilings}) == 1
    assert all(tiles.steps_ahead >= 1 for tiles in tilings)
    assert all(0 <= tiles.held <= tiles.steps for tiles in tilings)
    assert all(tiles.steps * tiles.parts * tiles.part >= inputs for tiles in tilings)


def new_cache(
    layers: int, kv_heads: int, head_dim: int, slots: int, positions: int, dtype: torch.dtype
) -> KVCache:
    return KVCache(
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        slots=slots,
        positions=positions,
        dtype=dtype,
        device=DEVICE,
    )


CHAIN = None
TREE = ([0, 1, 1, 2], [0b1, 0b11, 0b101, 0b1011], 0)
LATER_PASS = ([1, 2, 1, 2], [0b101, 0b1101, 0b10001, 0b110001], 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 3, 70])
@pytest.mark.parametrize("tree", [CHAIN, TREE], ids=["chain", "tree"])
def test_attend(
    tree: tuple[list[int], list[int], int] | None,
    sliding_window: int | None,
    with_norms: bool,
    dtype: torch.dtype,
) -> None:
    """Rotation, cache write and attention, rows of very different lengths, first slot not 0."""
    window = Window(1, torch.tensor([0, 130, 260], device=DEVICE), 4, 264, tree=tree and _tree(3, *tree))
    check_attention(window, sliding_window, with_norms, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sliding_window", [None, 20])
@pytest.mark.parametrize("width", [1, 4, 20])
def test_attend_over_a_short_context(width: int, sliding_window: int | None, dtype: torch.dtype) -> None:
    """One program holds all keys of a row; a window that is wider than its tile."""
    starts = torch.tensor([0, 7, 90], device=DEVICE)
    check_attention(Window(1, starts, width, 90 + width), sliding_window, False, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("span", [100, 270])
def test_attend_in_a_later_pass_of_a_tree(span: int, dtype: torch.dtype) -> None:
    starts = torch.tensor([0, 3, span - 8], device=DEVICE)
    check_attention(Window(1, starts, 4, span, tree=_tree(3, *LATER_PASS)), None, True, dtype)


def check_attention(window: Window, sliding_window: int | None, with_norms: bool, dtype: torch.dtype) -> None:
    head_dim, positions = 16, 300
    shape = HeadShape(heads=6, kv_heads=2, head_dim=head_dim, scale=0.3, sliding_window=sliding_window)
    table = random(2, positions, head_dim, dtype=dtype)
    qkv = random(window.rows, window.width, 10 * head_dim, dtype=dtype)
    norms = None
    if with_norms:
        norms = HeadNorms(*(Norm(random(head_dim, dtype=dtype), 1e-6, scales_wide=False) for _ in range(2)))
    ours, reference = (new_cache(1, 2, head_dim, 4, positions, dtype) for _ in range(2))
    for mine, other in zip((*ours.keys, *ours.values), (*reference.keys, *reference.values), strict=True):
        mine.normal_()
        other.copy_(mine)
    results = []
    for ops, cache in ((KernelOps(), ours), (TorchOps(), reference)):
        cache.bind(window)
        results.append(ops.attend(qkv, ops.plan(window, shape, table), norms, cache, 0))
    close(*results)
    close(ours.keys[0], reference.keys[0])
    assert torch.equal(ours.values[0], reference.values[0])


def _tree(rows: int, depths: list[int], ancestors: list[int], first: int) -> Tree:
    return Tree(
        torch.tensor([depths] * rows, device=DEVICE), torch.tensor([ancestors] * rows, device=DEVICE), first
    )


def test_prompts_attend_the_plain_way() -> None:
    shape = HeadShape(heads=4, kv_heads=2, head_dim=16, scale=0.25, sliding_window=None)
    window = Window.of([0, 7], 90, DEVICE)
    table, qkv = random(2, 128, 16, dtype=torch.float32), random(2, 90, 8 * 16, dtype=torch.float32)
    results = []
    for ops in (KernelOps(), TorchOps()):
        cache = new_cache(1, 2, 16, 2, 128, torch.float32)
        cache.bind(window)
        results.append(ops.attend(qkv, ops.plan(window, shape, table), None, cache, 0))
    close(*results)


@pytest.mark.parametrize("family", FAMILIES if ON_GPU else ["gemma3, sliding and full"])
def test_a_whole_body_over_kernels(family: str) -> None:
    model = build(family, torch.float32).to(DEVICE)
    kv_heads, head_dim = model.config.num_key_value_heads, model.config.head_dim
    ids = torch.randint(0, model.config.vocab_size, (2, 6), device=DEVICE)
    results = []
    for ops in (KernelOps(), TorchOps()):
        body = DecoderBody(model, ops)
        cache = new_cache(model.config.num_hidden_layers, kv_heads, head_dim, 2, 32, torch.float32)
        with torch.inference_mode():
            body(ids[:, :4], Window.of([0, 0], 4, DEVICE), cache, ())
            results.append(body(ids[:, 4:], Window.of([4, 3], 2, DEVICE), cache, (1,)))
    close(results[0].hidden, results[1].hidden)
    close(results[0].tapped[0], results[1].tapped[0])


def test_samples_follow_the_softmax_and_cold_rows_take_the_best() -> None:
    logits = random(1, 7, dtype=torch.float32).repeat(ROWS, 1)
    heat = torch.ones(ROWS, device=DEVICE)
    cold, warm = ROWS // 4, ROWS * 5 // 8
    heat[:cold] = 0.0
    heat[cold:warm] = 0.5
    clock = torch.tensor([3], device=DEVICE)
    chosen = sample(logits, heat, clock, seed=7)
    assert (chosen[:cold] == logits[0].argmax()).all()
    for part, warmth in ((chosen[cold:warm], 0.5), (chosen[warm:], 1.0)):
        _check_fit(part, torch.softmax(logits[0] / warmth, dim=-1))
    assert not torch.equal(chosen, sample(logits, heat, clock + 1, seed=7))
    assert torch.equal(chosen, sample(logits, heat, clock, seed=7))


def _check_fit(chosen: Tensor, expected: Tensor) -> None:
    from scipy.stats import chisquare

    counts: Any = torch.bincount(chosen, minlength=len(expected)).cpu().numpy()
    wanted: Any = expected.double().cpu().numpy()
    assert chisquare(counts, wanted / wanted.sum() * counts.sum()).pvalue > 1e-4


def test_a_planted_bias_fails_the_fit() -> None:
    expected = torch.tensor([0.5, 0.3, 0.2])
    biased = torch.multinomial(torch.tensor([0.4, 0.35, 0.25]), 1_500, replacement=True)
    with pytest.raises(AssertionError):
        _check_fit(biased, expected)
