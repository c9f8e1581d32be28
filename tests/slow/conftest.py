"""Tests that need no server, but time: kernels in Triton's interpreter, and whole commands."""

from __future__ import annotations

from importlib.util import find_spec

# Triton comes with the `dev` extra on Linux only.
_KERNELS = ["test_kernels.py", "test_head_kernels.py", "test_training_kernels.py", "test_settle_kernel.py"]
collect_ignore = [] if find_spec("triton") else _KERNELS
