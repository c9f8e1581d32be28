"""Shared by all tests."""

from __future__ import annotations

import torch

# Test models are tiny: threads would cost more than they save, on few cores above all.
torch.set_num_threads(1)
