"""Which version of Brigade this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The version that is installed."""
    try:
        return version("brigade")
    except PackageNotFoundError:  # run from a source tree
        return "0+source"
