"""Shared by all tests."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which PyTorch may do at any time.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Test models are tiny: threads would cost more than they save, on few cores above all.
torch.set_num_threads(1)

# No test depends on how fast a machine is.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
