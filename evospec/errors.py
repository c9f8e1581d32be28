"""Errors a user can act on: each message says what was wrong, where, and what to do."""

from __future__ import annotations


class EvoSpecError(Exception):
    """Base of all errors whose message is meant to be shown as one line."""


class ModelNotFoundError(EvoSpecError):
    """No model, tokenizer or drafter can be had under the given name."""


class UnsupportedModelError(EvoSpecError):
    """The model loads, but cannot be decoded exactly (its cache can't roll back, say)."""


class DrafterMismatchError(EvoSpecError):
    """The drafter was made for another target."""


class InvalidRequestError(EvoSpecError):
    """A request that can never be served: `param` names the offending parameter."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WireError(EvoSpecError):
    """Bytes that are not a valid trace, manifest or adapter of this schema."""


class RegistryError(EvoSpecError):
    """The weight registry cannot be reached or refused an operation."""


class VersionMissingError(RegistryError):
    """The weight registry answers, but does not have a version, or not its bytes (any more)."""


class StalePublisherError(RegistryError):
    """The publisher's epoch or version is behind the registry's: another aligner took over."""


class DecisionRefusedError(RegistryError):
    """A publication or decision that does not fit what the registry holds now."""


class TokenIndexError(EvoSpecError):
    """The semantic token index cannot be reached or refused an operation."""


class EngineFailedError(EvoSpecError):
    """The decoding engine of a replica crashed, is stuck, or was stopped; its requests are lost."""
