"""The kernels that training uses compute what the plain operations do: on a CUDA device where there is one,
else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evospec.kernels.rotary import rotate_store
from evospec.models.root_attention import masked_root_attention, root_attention
from evospec.training.fused_kl import PLAIN_KL, KernelKL, LossShape, TorchKL, fused_kl

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def distance(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach().float(), reference.detach().float()
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [37, 4096, 9000])
@pytest.mark.parametrize("focus", [0.0, 3.0])
def test_loss_of_roots(focus: float, vocab: int, dtype: torch.dtype) -> None:
    positions, decided = 5, torch.tensor([0, 0, 3, 4, 2, 1, 4], device=DEVICE)
    target = torch.randn(positions, vocab, dtype=dtype, device=DEVICE) * 3
    drafter = torch.randn(len(decided), vocab, dtype=dtype, device=DEVICE) * 3
    drafter[2] = target[3]  # equal distributions cost nothing
    weights = torch.rand(len(decided), device=DEVICE)
    weights[4] = 0.0

    plain, fused = TorchKL(), KernelKL()
    summary = fused.summarise(target)
    expected = plain.terms(plain.summarise(target), decided, drafter, weights, focus)
    found = fused.terms(summary, decided, drafter.clone(), weights, focus)

    torch.testing.assert_close(summary.lse, plain.summarise(target).lse)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-4)
    # Where the distributions are equal, which q lie below p is a matter of rounding.
    apart = [0, 1, 3, 4, 5, 6] if focus else slice(None)
    difference = distance(found.gradients[apart], expected.gradients[apart])
    assert difference < (1e-5 if dtype is torch.float32 else 1e-2)
    assert not found.gradients[4].any()
    assert torch.equal(found.matches, expected.matches)
    assert found.matches[2]


def test_kl_takes_the_first_of_equal_logits() -> None:
    target = torch.zeros(1, 5000, device=DEVICE)
    target[0, [300, 4500]] = 2.0
    summary = KernelKL().summarise(target)
    assert summary.best.tolist() == [300]


@pytest.mark.parametrize("shape", [PLAIN_KL, LossShape(focus=2.0, unreached=0.25)])
def test_a_whole_loss_by_kernels(shape: LossShape) -> None:
    drafts = torch.randn(3, 7, 16, device=DEVICE, requires_grad=True)
    target, head = torch.randn(20, 16, device=DEVICE), torch.randn(500, 16, device=DEVICE)
    decided = torch.tensor([0, 1, 2, 5, 6, 10, 11], device=DEVICE)
    weights = torch.rand(3, 7, device=DEVICE)
    gradients = []
    for ops in (TorchKL(), KernelKL()):
        result = fused_kl(drafts, target, decided, head, weights, roots_at_once=4, shape=shape, ops=ops)
        gradients.append(torch.autograd.grad(result.losses.sum(), drafts)[0])
    assert distance(gradients[1], gradients[0]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_attention_of_roots(steps: int, kv_heads: int, dtype: torch.dtype) -> None:
    """Against one masked attention in float32, gradients included."""

    def leaf(heads: int) -> Tensor:
        return torch.randn(3, heads, 37, 64, dtype=dtype, device=DEVICE, requires_grad=True)

    query, gradient = leaf(4), torch.randn(3, 4, 37, 64, dtype=dtype, device=DEVICE)
    keys, values = [leaf(kv_heads) for _ in range(steps)], [leaf(kv_heads) for _ in range(steps)]
    inputs = [query, *keys, *values]
    wide = [each.detach().float().requires_grad_() for each in inputs]

    ours = root_attention(query, keys, values, 0.125)
    plain = masked_root_attention(wide[0], wide[1 : steps + 1], wide[steps + 1 :], 0.125)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    assert distance(ours, plain) < tolerance
    for mine, reference in zip(
        torch.autograd.grad(ours, inputs, gradient),
        torch.autograd.grad(plain, wide, gradient.float()),
        strict=True,
    ):
        assert distance(mine, reference) < tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_embedding_of_a_prompt(dtype: torch.dtype) -> None:
    """All heads of a token at once, as of few tokens: the same numbers."""
    rows, width, heads, kv_heads, head_dim = 3, 400, 6, 2, 16
    qkv = torch.randn(rows, width, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=DEVICE)
    table = torch.randn(2, width + 8, head_dim, dtype=dtype, device=DEVICE)

    def rotated(part: Tensor, starts: list[int]) -> list[Tensor]:
        keys = torch.zeros(rows, kv_heads, width + 8, head_dim, dtype=dtype, device=DEVICE)
        values = torch.zeros_like(keys)
        query = rotate_store(
            part.contiguous(),
            table,
            torch.tensor(starts, device=DEVICE),
            keys,
            values,
            tree=None,
            first_slot=0,
            heads=heads,
            norms=None,
            eps=0.0,
            scales_wide=False,
        )
        return [query, keys, values]

    whole = rotated(qkv, [0, 3, 8])
    few = rotated(qkv[:, 70:75], [70, 73, 78])
    assert torch.equal(whole[0][:, :, 70:75], few[0])
    for row, start in enumerate((70, 73, 78)):
        place = slice(start, start + 5)
        assert torch.equal(whole[1][row, :, place], few[1][row, :, place])
        assert torch.equal(whole[2][row, :, place], few[2][row, :, place])
