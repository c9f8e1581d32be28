"""Which domains the headline is a mean over."""

from __future__ import annotations

from collections.abc import Iterable

GENERAL = "general"


def headline_domains(domains: Iterable[str]) -> tuple[str, ...]:
    """The specialised ones, in their order: all but `general`, unless there is no other."""
    known = tuple(dict.fromkeys(domains))
    return tuple(domain for domain in known if domain != GENERAL) or known
