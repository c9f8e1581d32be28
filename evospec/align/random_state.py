"""Where a random generator is in its stream, as a record that can be stored."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from evospec.wire import Record


class RandomState(Record):
    """State of NumPy's PCG64, the generator of `numpy.random.default_rng`."""

    state: int = Field(ge=0, lt=2**128)
    inc: int = Field(ge=0, lt=2**128)
    has_uint32: int = Field(ge=0, le=1)
    uinteger: int = Field(ge=0, lt=2**32)

    @classmethod
    def of(cls, generator: np.random.Generator) -> RandomState:
        found = generator.bit_generator.state
        return cls(**found["state"], has_uint32=found["has_uint32"], uinteger=found["uinteger"])

    def apply(self, generator: np.random.Generator) -> None:
        """`generator` draws next what the one that this was taken of would have drawn."""
        generator.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": self.state, "inc": self.inc},
            "has_uint32": self.has_uint32,
            "uinteger": self.uinteger,
        }
