"""Markdown of tables and of texts that come from programs: nothing in them is taken for markup by mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]+`)")
_MARKUP = re.compile(r"([\\<>*_\[\]])")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what a cell holds is Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |" for line in lines)


def plain(text: str) -> str:
    """A text of a program on one line, as Markdown: code in backticks stays code, all else means itself."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """A text as code."""
    return f"`{text}`"
