"""Sizes in words, as disks and memory are sold: in powers of 1,000."""

from __future__ import annotations


def human_bytes(n_bytes: int) -> str:
    """`n_bytes` with a unit: `512 B`, `100.1 MB`."""
    size = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 999.95:  # what would be rounded to 1,000 is one of the next unit
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
