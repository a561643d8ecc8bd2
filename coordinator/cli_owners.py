"""Owners of workers and keys, as the commands take them and as people are told of them."""

from __future__ import annotations

from coordinator.cli_output import printable
from protocol.error_forms import repeated
from protocol.errors import ConfigError
from protocol.key_rest import check_owner

NOBODY = "none"
"""As `none` takes a limit away."""


def owner_label(text: str) -> str:
    """The label that an argument gives; empty, for nobody in particular, where it is empty or `none`.

    Raises:
        ConfigError: it can't be one.
    """
    label = text.strip()
    try:
        check_owner(label)
    except ValueError as exc:
        raise ConfigError(f"the owner {repeated(label)} can't be used: {exc}") from exc
    return "" if label.lower() == NOBODY else label


def whose(owner: str) -> str:
    """Whose something is, in words."""
    return f"{printable(owner)}'s" if owner else "nobody's in particular"
