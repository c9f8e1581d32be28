"""Who may use the endpoint."""

from __future__ import annotations

from pydantic import Field, model_validator

from evospec.config.section import Section


class AdminKey(Section):
    """A key, of which only the digest is known."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    sha256: str = Field(repr=False, pattern=r"^[0-9a-f]{64}$")


class ApiKey(AdminKey):
    """A key to the API. What requests teach stays with those of their tenant."""

    tenant: str = Field("", max_length=64)


class AccessConfig(Section):
    """Who may use the endpoint. `evospec keys new` makes a key, and the line for it with its digest."""

    keys: tuple[ApiKey, ...] = Field(
        (),
        description="Keys to the API: `name`, `sha256`, and a `tenant`, which partitions what is learned. "
        "Without any, everybody who reaches the endpoint may use it.",
    )
    admin_keys: tuple[AdminKey, ...] = Field(
        (),
        description="Keys to what is below /admin, and to the dashboard: `name` and `sha256`. Without any, "
        "nobody gets to the former, and to the latter only where there are no keys at all.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> AccessConfig:
        keys = (*self.keys, *self.admin_keys)
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have the same name")
        if len({key.sha256 for key in keys}) < len(keys):
            raise ValueError("two keys are the same: administration needs keys of its own")
        return self
