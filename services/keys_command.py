"""`evospec keys new`: a key for whoever asks, and its digest for the configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import ValidationError

from evospec.config.access import AdminKey, ApiKey
from evospec.errors import EvoSpecError
from services.access import digest_of, new_key


class KeyNameError(EvoSpecError):
    """A key can't be named like this."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key, to be shown once, and what the configuration is to hold of it."""

    key: str
    entry: ApiKey | AdminKey

    @property
    def config(self) -> dict[str, str]:
        return {name: value for name, value in self.entry.model_dump().items() if value}

    def __str__(self) -> str:
        section = "keys" if isinstance(self.entry, ApiKey) else "admin_keys"
        return (
            f"{self.key}\n\n"
            "Give it to its owner now: it is not kept anywhere. The server's configuration needs\n\n"
            f"access:\n  {section}:\n    - {json.dumps(self.config)}"
        )


def make_key(name: str, tenant: str, *, admin: bool) -> NewKey:
    """Raises KeyNameError when the configuration would not take it."""
    key = new_key()
    try:
        if admin:
            return NewKey(key, AdminKey(name=name, sha256=digest_of(key)))
        return NewKey(key, ApiKey(name=name, sha256=digest_of(key), tenant=tenant))
    except ValidationError as error:
        first = error.errors()[0]
        raise KeyNameError(f"--{first['loc'][0]}: {first['msg']}") from None
