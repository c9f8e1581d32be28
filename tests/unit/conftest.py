"""Shared by unit tests."""

from __future__ import annotations

from importlib.util import find_spec

# Triton comes with the `dev` extra on Linux only.
collect_ignore = [] if find_spec("triton") else ["test_kernels.py", "test_training_kernels.py"]
