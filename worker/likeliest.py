"""The likeliest tokens by rows of logits, wherever those are: all rows at once, two numbers of each are copied.

torch's search for where the largest of a row is takes ten times as long as finding out how large it is. So the row
is cut into parts, the largest of each is found, and then where it is in the first part that has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_MOST_IN_PART = 256
_LEAST_IN_PART = 16
"""With less, the largest of the parts are about as many as the logits."""
_ROWS_AT_ONCE = 16
"""They are copied together in float32: 10 MB for a vocabulary of 150,000."""


def likeliest_tokens(logits: Sequence[torch.Tensor]) -> list[int | None]:
    """The first of the largest in each row of each (n, vocab_size); None for rows that aren't finite."""
    found: list[int | None] = []
    rows = [row for each in logits for row in each.split_with_sizes([1] * len(each))]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        together = rows[start : start + _ROWS_AT_ONCE]
        found += _likeliest(together[0] if len(together) == 1 else torch.cat(together))
    return found


def _likeliest(logits: torch.Tensor) -> list[int | None]:
    """Likewise of (n, vocab_size)."""
    scores = logits.to(torch.float32)
    n_rows, vocab_size = scores.shape
    width = math.gcd(vocab_size, _MOST_IN_PART)
    if width < _LEAST_IN_PART:
        token_ids = scores.argmax(-1)
    else:
        parts = scores.reshape(n_rows, -1, width)
        first = parts.amax(-1).argmax(-1)  # (n,)
        token_ids = first * width + parts[torch.arange(n_rows, device=first.device), first].argmax(-1)
    found: list[list[int]] = torch.stack([token_ids, torch.isfinite(scores.sum(-1)).long()]).tolist()
    return [token_id if is_finite else None for token_id, is_finite in zip(*found, strict=True)]
