"""What the garbage collector is spared."""

from __future__ import annotations

import gc
import weakref

from evospec.heap import release_heap, settle_heap


class Knot:
    """Refers to itself: only the collector can free it."""

    def __init__(self) -> None:
        self.self = self


def test_what_exists_is_left_alone_until_it_is_released() -> None:
    knot = Knot()
    seen = weakref.ref(knot)
    settle_heap()
    try:
        del knot
        gc.collect()
        assert seen() is not None
        later = Knot()
        gone = weakref.ref(later)
        del later
        gc.collect()
        assert gone() is None
    finally:
        release_heap()
    assert seen() is None
    assert gc.get_freeze_count() == 0
