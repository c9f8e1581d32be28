"""What Python's garbage collector need not look at."""

from __future__ import annotations

import gc


def settle_heap() -> None:
    """Leaves everything that exists now out of later garbage collections.

    Tokenizers and libraries are hundreds of thousands of objects that stay: to look through them all takes a
    third of a second, in which no cycle is launched. Call it once what is loaded is loaded.
    """
    gc.collect()
    gc.freeze()


def release_heap() -> None:
    """Collects what is no longer used, also of what `settle_heap` has left out."""
    gc.unfreeze()
    gc.collect()
