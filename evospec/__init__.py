"""EvoSpec: speculative decoding that keeps adapting to the traffic it serves."""

__version__ = "0.1.0"
