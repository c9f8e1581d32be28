"""Triton compiles every kernel for a CUDA device, on machines that have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# Shared memory of the smallest device since Ampere, and of its data-centre devices.
LIMITS = {"bfloat16": 99 << 10, "float32": 163 << 10}


def test_every_kernel_compiles_and_fits_into_shared_memory(tmp_path: Path) -> None:
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.kernel_compiler"],
        capture_output=True,
        text=True,
        check=False,
        env=compiled | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    shared: dict[str, dict[str, int]] = json.loads(done.stdout)
    assert shared.keys() == LIMITS.keys()
    for dtype, kernels in shared.items():
        assert len(kernels) > 15
        assert {name: size for name, size in kernels.items() if size > LIMITS[dtype]} == {}
