"""The base of what result files hold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A part of a result file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
