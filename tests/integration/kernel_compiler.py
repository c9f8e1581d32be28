"""Compiles the fused kernels for CUDA devices, which needs none; prints the shared memory each takes.

Run as a program: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evospec.kernels import attention, gate, norm, rotary, sample

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {"bfloat16": "*bf16", "float32": "*fp32"}
ITEMSIZE = {"bfloat16": 2, "float32": 4}
NOT_OF_THE_MODEL = {
    **dict.fromkeys(("starts", "depths", "ancestors", "clock"), "*i64"),
    **dict.fromkeys(("partial", "maxima", "sums", "heat"), "*fp32"),
    **dict.fromkeys(("scale", "eps"), "fp32"),
}
NUMBERS = [
    "first_slot",
    "first_place",
    "width",
    "stride_slot",
    "stride_head",
    "stretch",
    "splits",
    "sliding_window",
    "heads",
    "columns",
    "seed",
    "table_positions",
]


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments; what is in `ones` is 1, which Triton compiles apart."""

    kernel: triton.JITFunction
    constants: dict[str, object]
    warps: int = 4
    ones: tuple[str, ...] = field(default=())

    def name(self, dtype: str) -> str:
        return f"{self.kernel.__name__} {dtype} {self.constants} {' '.join(self.ones)}"

    def shared_bytes(self, dtype: str) -> int:
        constants = {**self.constants, **dict.fromkeys(self.ones, 1)}
        own = {"sums": TYPES[dtype]} if self.kernel is norm._add_norm_kernel else {}
        signature = {
            name: "constexpr"
            if name in constants
            else own.get(name) or NOT_OF_THE_MODEL.get(name) or ("i32" if name in NUMBERS else TYPES[dtype])
            for name in self.kernel.arg_names
        }
        if self.kernel is sample._sample_kernel:
            signature["out"] = "*i64"
        places = {(self.kernel.arg_names.index(name),): value for name, value in constants.items()}
        compiled = triton.compile(
            ASTSource(self.kernel, signature, places), target=TARGET, options={"num_warps": self.warps}
        )
        return int(compiled.metadata.shared)


def variants(itemsize: int) -> Iterator[Variant]:
    for head_dim, kv_heads, groups, slides in ((64, 2, 7, False), (128, 8, 4, False), (256, 1, 4, True)):
        for queries in (16, 64):
            if not attention.takes(queries, head_dim, itemsize):
                continue
            shape: dict[str, object] = {
                "KV_HEADS": kv_heads,
                "GROUPS": groups,
                "HEAD_DIM": head_dim,
                "QUERIES": queries,
                "BLOCK": attention.key_block(head_dim, itemsize),
                "SLIDES": slides,
            }
            plain = ("width", "splits") if queries == 16 else ()
            yield Variant(attention._partial_kernel, {**shape, "IS_TREE": False}, ones=plain)
            yield Variant(attention._partial_kernel, {**shape, "IS_TREE": True})
    yield Variant(attention._combine_kernel, {"HEAD_DIM": 64, "SPLITS": 32}, warps=1)
    yield Variant(attention._combine_kernel, {"HEAD_DIM": 64, "SPLITS": 1}, warps=1, ones=("splits", "width"))
    heads: dict[str, object] = {"HEADS": 14, "KV_HEADS": 2, "HEAD_DIM": 64}
    for has_norms in (False, True):
        for is_tree in (False, True):
            flags = {"HAS_NORMS": has_norms, "SCALES_WIDE": has_norms, "IS_TREE": is_tree}
            yield Variant(rotary._rotate_store_kernel, heads | flags, warps=1)
    yield Variant(rotary._rotate_store_kernel, heads | flags, warps=1, ones=("width",))
    for flag in (False, True):
        yield Variant(gate._gate_kernel, {"GELU": flag, "BLOCK": 1024})
        yield Variant(norm._add_norm_kernel, {"HAS_DELTA": flag, "SCALES_WIDE": flag, "BLOCK": 1024})
    yield Variant(sample._sample_kernel, {"BLOCK": 2048}, warps=8)


def main() -> None:
    shared = {
        dtype: {variant.name(dtype): variant.shared_bytes(dtype) for variant in variants(itemsize)}
        for dtype, itemsize in ITEMSIZE.items()
    }
    print(json.dumps(shared))


if __name__ == "__main__":
    main()
