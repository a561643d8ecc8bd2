"""Sizes in words: in a unit in which none is 0 that isn't."""

from __future__ import annotations


def size_text(n_bytes: int) -> str:
    """The size in MB, or in KB or bytes where that says more; in powers of 1,000, as disks are sold."""
    if n_bytes >= 100_000:
        return f"{n_bytes / 1e6:,.1f} MB"
    return f"{n_bytes / 1e3:.1f} KB" if n_bytes >= 1000 else f"{n_bytes} bytes"
