"""Features in a byte each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evospec.align.trace import Trace

_LARGEST = 127


def quantised(trace: Trace) -> Trace:
    """The trace with int8 features and one scale for each feature, its largest value by 127.

    One per feature, not per position: a few features are orders of magnitude above the others at all
    positions, and would leave those nothing of a common scale. What is lost is half a scale at most.
    """
    numbers = trace.float_features()  # [width, taps * hidden]
    scales = np.abs(numbers).max(axis=0) / np.float32(_LARGEST)
    steps = np.divide(numbers, scales, out=np.zeros_like(numbers), where=scales > 0)
    # The least of floats can't be divided by 127 exactly.
    codes = np.rint(steps).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return replace(trace, features=codes, feature_scales=scales)
