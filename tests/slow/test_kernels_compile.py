"""Triton compiles every kernel for a CUDA device, on machines that have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

pytest.importorskip("triton")

# Shared memory of the smallest device since Ampere, and of its data-centre devices.
LIMITS = {"bfloat16": 99 << 10, "float32": 163 << 10}
EARLY = {"_project_kernel", "_project_pair_kernel", "_score_kernel"}  # they read weights early


@dataclass(frozen=True)
class Compiled:
    name: str
    dtype: str
    kernel: str
    overlaps: bool
    shared: int
    waits: int
    reads: int
    writes: int


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.slow.kernel_compiler"],
        capture_output=True,
        text=True,
        check=False,
        env=compiled | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))},
    )
    assert done.returncode == 0, done.stderr
    return [Compiled(**entry) for entry in json.loads(done.stdout)]


def test_every_kernel_compiles_and_fits_into_shared_memory(kernels: list[Compiled]) -> None:
    assert {each.dtype for each in kernels} == LIMITS.keys()
    assert len({each.kernel for each in kernels}) > 15
    assert [each for each in kernels if each.shared > LIMITS[each.dtype]] == []


def test_kernels_that_overlap_wait_before_they_read_or_write(kernels: list[Compiled]) -> None:
    overlapping = [each for each in kernels if each.overlaps]
    assert {each.kernel for each in overlapping} > EARLY
    assert [each for each in overlapping if each.waits != 1 or each.writes] == []
    assert {each.kernel for each in overlapping if each.reads} == EARLY
    assert [each for each in kernels if not each.overlaps and each.waits] == []
