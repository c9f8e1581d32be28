"""Triton kernels of the CUDA path. Each has a plain PyTorch twin in `evospec.models.ops`."""
