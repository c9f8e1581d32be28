"""Compiles the fused kernels for CUDA devices, which needs none; prints what each takes and does early.

Run as a program: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evospec.kernels import (
    attend,
    attention,
    best,
    gate,
    head,
    kl,
    means,
    norm,
    project,
    project_many,
    project_pair,
    rotary,
    rows,
    sample,
    settle,
    tiling,
)

TARGET = GPUTarget("cuda", 90, 32)
SHARED = tiling.LEAST_BYTES
TYPES = {"bfloat16": "*bf16", "float32": "*fp32"}
ITEMSIZE = {"bfloat16": 2, "float32": 4}
NOT_OF_THE_MODEL = {
    **dict.fromkeys(("starts", "depths", "ancestors", "clock"), "*i64"),
    **dict.fromkeys(("ids", "chosen", "packed", "active", "emitted", "choice", "order"), "*i64"),
    **dict.fromkeys(("tops", "found", "padding", "means", "keep", "shares"), "*fp32"),
    "places": "*i32",
    **dict.fromkeys(("target_best", "decided", "best"), "*i64"),
    **dict.fromkeys(("partial", "maxima", "sums", "heat", "target_lse", "lse", "weights", "losses"), "*fp32"),
    **dict.fromkeys(("scale", "eps", "first_eps", "second_eps", "focus"), "fp32"),
    "matches": "*i1",
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
    "tokens",
    "per_row",
    "outputs",
    "inputs",
    "span",
    "rows",
    "tiles",
    "blocks",
    "most",
]
ALIGNED = (
    "inputs",
    "span",
    "outputs",
    "stride_slot",
    "stride_head",
)  # and all tensors: multiples of 16, as they mostly are


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments; what is in `ones` is 1, which Triton compiles apart."""

    kernel: triton.JITFunction
    constants: dict[str, object]
    warps: int = 4
    stages: int = 3
    ones: tuple[str, ...] = field(default=())

    def name(self, dtype: str) -> str:
        return f"{self.kernel.__name__} {dtype} {self.constants} {' '.join(self.ones)}"

    @property
    def may_overlap(self) -> bool:
        return "OVERLAPS" in self.kernel.arg_names

    def compiled(self, dtype: str, *, overlaps: bool) -> dict[str, object]:
        """Bytes of shared memory, and the accesses to global memory before it waits for other kernels."""
        constants = {**self.constants, **dict.fromkeys(self.ones, 1)}
        if self.may_overlap:
            constants["OVERLAPS"] = overlaps
        own = {"sums": TYPES[dtype]} if self.kernel is norm._add_norm_kernel else {}
        if self.kernel is settle._settle_kernel:
            own = dict.fromkeys(
                ("last", "cached", "remaining", "pending", "pending_tokens", "drafts"), "*i64"
            )
            own |= dict.fromkeys(("lengths", "choices", "variants", "report"), "*i64")
            own |= dict.fromkeys(("scores", "totals"), "*fp32")
            own |= dict.fromkeys(("places", "choice_step", "id_step", "score_step", "total_step"), "i32")
            own |= dict.fromkeys(("waiting", "size"), "i32")
        if self.kernel is rows._write_kernel:
            own = {"rows": TYPES[dtype]}
        signature = {
            name: "constexpr"
            if name in constants
            else own.get(name) or NOT_OF_THE_MODEL.get(name) or ("i32" if name in NUMBERS else TYPES[dtype])
            for name in self.kernel.arg_names
        }
        if self.kernel is sample._sample_kernel:
            signature["out"] = "*i64"
        places = {(self.kernel.arg_names.index(name),): value for name, value in constants.items()}
        aligned = {
            (self.kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if kind.startswith("*") or (name in ALIGNED and kind != "constexpr")
        }
        compiled = triton.compile(
            ASTSource(self.kernel, signature, places, aligned),
            target=TARGET,
            options={"num_warps": self.warps, "num_stages": self.stages},
        )
        waits = [match.start() for match in re.finditer(r"griddepcontrol\.wait", compiled.asm["ptx"])]
        early = compiled.asm["ptx"][: waits[0]] if waits else ""
        return {
            "shared": int(compiled.metadata.shared),
            "waits": len(waits),
            "reads": len(re.findall(r"ld\.global|cp\.async", early)),
            "writes": len(re.findall(r"st\.global|red\.global|atom\.global", early)),
        }


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
            stages = attention.stages(queries, head_dim, itemsize)
            yield Variant(attention._partial_kernel, {**shape, "IS_TREE": False}, stages=stages, ones=plain)
            yield Variant(attention._partial_kernel, {**shape, "IS_TREE": True}, stages=stages)
            shape |= {"PLACES": attend.MOST_PLACES, "HAS_NORMS": slides, "SCALES_WIDE": slides}
            for span in (256, 16_384):
                shape["BLOCK"] = attend.cut(kv_heads, span, head_dim, itemsize).block
                flags = {"IS_TREE": span > 256, "IS_ALONE": queries == 16}
                yield Variant(attend._attend_kernel, shape | flags, stages=stages, ones=plain)
    yield Variant(attention._combine_kernel, {"HEAD_DIM": 64, "SPLITS": 32}, warps=1)
    yield Variant(attention._combine_kernel, {"HEAD_DIM": 64, "SPLITS": 1}, warps=1, ones=("splits", "width"))
    yield from projections(itemsize)
    yield from products_of_many()
    layout: dict[str, object] = {"HEADS": 14, "KV_HEADS": 2, "HEAD_DIM": 64, "BLOCK": 8}
    for has_norms in (False, True):
        for is_tree in (False, True):
            flags = {"HAS_NORMS": has_norms, "SCALES_WIDE": has_norms, "IS_TREE": is_tree}
            yield Variant(rotary._rotate_store_kernel, layout | flags, warps=1)
    yield Variant(rotary._rotate_store_kernel, layout | flags, warps=1, ones=("width",))
    for flag in (False, True):
        yield Variant(gate._gate_kernel, {"GELU": flag, "BLOCK": 1024})
        yield Variant(norm._add_norm_kernel, {"HAS_DELTA": flag, "SCALES_WIDE": flag, "BLOCK": 1024})
        yield Variant(kl._loss_kernel, {"FOCUSED": flag, "BLOCK": 4096}, warps=16)
    yield Variant(kl._summary_kernel, {"BLOCK": 4096}, warps=16)
    yield Variant(sample._sample_kernel, {"BLOCK": 1024}, warps=8)
    yield Variant(rows._write_kernel, {"BLOCK": 1024, "COUNTS": 4})
    yield Variant(means._advance_kernel, {"PLACES": 8, "BLOCK": 256})
    yield Variant(best._maxima_kernel, {"TILE": 16, "BLOCK": 128})
    for k, power in ((1, 1), (6, 8), (16, 16)):
        yield Variant(best._pick_kernel, {"K": k, "BEST": power, "BLOCKS": 2048, "TILES": 128, "BLOCK": 128})
    yield from heads(itemsize)
    yield from settling()


def heads(itemsize: int) -> Iterator[Variant]:
    """Small and large ones, of one token and of as many as there may be."""
    for count in (2048, 151_936):
        for tokens in (1, tiling.MOST_TOKENS):
            tiles = tiling.tiling(count, 896, tokens=tokens, itemsize=itemsize, shared=SHARED)
            constants = tiled(tiles, tokens) | {"HAS_PADDING": tokens > 1}
            plain = ("tokens",) if tokens == 1 else ()
            yield Variant(head._score_kernel, constants, tiles.parts, tiles.steps_ahead + 1, plain)
        programs = triton.next_power_of_2(triton.cdiv(count, tiles.rows))
        yield Variant(head._choose_kernel, {"HAS_IDS": count == 2048, "TILES": programs, "BLOCK": 1024})


def projections(itemsize: int) -> Iterator[Variant]:
    """Of one token, and of as many as there may be; of one weight, and of five that one row or several choose
    among."""
    for tokens, (choices, weights) in product((1, tiling.MOST_TOKENS), ((0, 1), (1, 5), (2, 5))):
        chosen = {"CHOICES": choices, "VARIANTS": weights}
        plain = ("tokens", "per_row") if tokens == 1 else ()
        for outputs, inputs, normed, gated in (
            (1152, 896, True, False),
            (4864, 896, True, True),
            (896, 4864, False, False),
        ):
            tiles = tiling.tiling(
                outputs,
                inputs,
                tokens=tokens,
                itemsize=itemsize,
                shared=SHARED,
                weights=2 if gated else 1,
            )
            flags = {"NORMED": normed, "HAS_BIAS": normed and not gated, "HAS_RESIDUAL": not normed}
            constants = flags | {"GATED": gated, "GELU": False} | chosen | tiled(tiles, tokens)
            constants |= {"LINES": tiles.lines(inputs, itemsize), "LINE": tiling.LINE_BYTES // itemsize}
            yield Variant(project._project_kernel, constants, tiles.parts, tiles.steps_ahead + 1, plain)
        tiles = tiling.tiling(1152, 896, tokens=tokens, itemsize=itemsize, shared=SHARED, weights=2, states=2)
        constants = tiled(tiles, tokens) | chosen
        yield Variant(project_pair._project_pair_kernel, constants, tiles.parts, tiles.steps_ahead + 1, plain)


def products_of_many() -> Iterator[Variant]:
    """Tokens of a row each, and of several; with narrow and wide programs."""
    for tokens, outputs in product((16, 64), (32, 64)):
        constants: dict[str, object] = {"VARIANTS": 5, "TOKENS": tokens, "ROWS": outputs, "INPUTS": 64}
        for ones in ((), ("per_row",)):
            yield Variant(project_many._project_many_kernel, constants, 4, 4, ones)


def tiled(tiles: tiling.Tiling, tokens: int) -> dict[str, object]:
    return {
        "TOKENS": tokens,
        "ROWS": tiles.rows,
        "PARTS": tiles.parts,
        "PART": tiles.part,
        "HELD": tiles.held,
        "STEPS": tiles.steps,
    }


def settling() -> Iterator[Variant]:
    """After a draft whose pairs the drafter has taken in, and after plain decoding."""
    drafted: dict[str, object] = {
        "HAS_ACTIVE": True,
        "BEST": 6,
        "TRACED": 6,
        "DRAFTED": True,
        "CHOSEN": False,
    }
    drafted |= {"HAS_FEATURES": True, "ABSORBED": True, "PLACES": 8, "RANKS": 8, "BLOCK": 1024}
    yield Variant(settle._settle_kernel, drafted)
    plain = dict.fromkeys(drafted, False) | {"BEST": 0, "TRACED": 0, "PLACES": 1, "RANKS": 1, "BLOCK": 4096}
    yield Variant(settle._settle_kernel, plain, ones=("places",))


def main() -> None:
    compiled = [
        {"name": variant.name(dtype), "dtype": dtype, "kernel": variant.kernel.__name__, "overlaps": overlaps}
        | variant.compiled(dtype, overlaps=overlaps)
        for dtype, itemsize in ITEMSIZE.items()
        for variant in variants(itemsize)
        for overlaps in ((False, True) if variant.may_overlap and dtype == "bfloat16" else (False,))
    ]
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
