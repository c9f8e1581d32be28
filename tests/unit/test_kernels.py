"""The fused kernels compute what the plain operations do.

On a machine with a CUDA device they run there; elsewhere Triton's interpreter runs
them, in float32 only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evospec.kernels.sample import sample
from evospec.models.decoder import DecoderBody
from evospec.models.kernel_ops import KernelOps
from evospec.models.kv_cache import KVCache, Tree, Window
from evospec.models.ops import HeadNorms, HeadShape, Norm, TorchOps
from tests.unit.test_decoder_body import FAMILIES, build

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
ROWS = 40_000 if ON_GPU else 480  # of the sampling test; the interpreter takes 20 ms a row


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, reference: Tensor) -> None:
    tolerance = 2e-5 if ours.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
def test_gate(gelu: bool, dtype: torch.dtype) -> None:
    gate_up = random(2, 3, 2 * 1100, dtype=dtype)
    close(KernelOps().gate(gate_up, gelu=gelu), TorchOps().gate(gate_up, gelu=gelu))


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
TREE = ([0, 1, 1, 2], [0b1, 0b11, 0b101, 0b1011])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 3, 70])
@pytest.mark.parametrize("tree", [CHAIN, TREE], ids=["chain", "tree"])
def test_attend(
    tree: tuple[list[int], list[int]] | None,
    sliding_window: int | None,
    with_norms: bool,
    dtype: torch.dtype,
) -> None:
    """Rotation, cache write and attention, rows of very different lengths, first slot not 0."""
    rows, width, span, head_dim = 3, 4, 264, 16
    shape = HeadShape(heads=6, kv_heads=2, head_dim=head_dim, scale=0.3, sliding_window=sliding_window)
    starts = torch.tensor([0, 130, 260], device=DEVICE)
    window = Window(1, starts, width, span, tree=tree and _tree(rows, *tree))
    table = random(2, 300, head_dim, dtype=dtype)
    qkv = random(rows, width, 10 * head_dim, dtype=dtype)
    norms = None
    if with_norms:
        norms = HeadNorms(*(Norm(random(head_dim, dtype=dtype), 1e-6, scales_wide=False) for _ in range(2)))
    ours, reference = (new_cache(1, 2, head_dim, 4, 300, dtype) for _ in range(2))
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


def _tree(rows: int, depths: list[int], ancestors: list[int]) -> Tree:
    return Tree(torch.tensor([depths] * rows, device=DEVICE), torch.tensor([ancestors] * rows, device=DEVICE))


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
