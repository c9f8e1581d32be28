"""What a plan can't be made for."""

from __future__ import annotations

from evospec.errors import EvoSpecError


class PlanError(EvoSpecError):
    """A question that has no answer: says what is wrong with it."""
