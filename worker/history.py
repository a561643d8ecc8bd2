"""What a session's stage has taken and given, by position: the head's token ids, the hidden states sent onwards.

Kept for the case that the session goes on by another route: the ids say how far the new prompt is the old text, the
states are sent again to a hop that hasn't got them. Used on the event loop only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_JOINED_ROWS = 64
"""Single rows that are put together: a tensor of its own for every token would cost more than what is in it."""


class History:
    """Grows with the session; position 0 comes first, and there are no gaps."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Empty anywhere but at a head."""
        self.n_states = 0
        """Positions whose hidden states are kept."""
        self._parts: list[torch.Tensor] = []
        self._n_single_rows = 0
        """How many parts at the end are of one row."""

    def n_known(self, position: int, token_ids: Sequence[int]) -> int:
        """How many of `token_ids`, which begin at `position`, are what stands there already."""
        known = self.token_ids[position : position + len(token_ids)]
        if known == list(token_ids):
            return len(known)
        pairs = zip(known, token_ids, strict=False)
        return next((index for index, (old, new) in enumerate(pairs) if old != new), len(known))

    def put_ids(self, position: int, token_ids: Sequence[int]) -> None:
        """Note ids from `position` on; where others stand there, these and all after them are forgotten."""
        n_known = self.n_known(position, token_ids)
        if n_known < len(token_ids):
            del self.token_ids[position + n_known :]
            self.token_ids.extend(token_ids[n_known:])

    def add_states(self, states: torch.Tensor) -> None:
        """Keep the hidden states (n_tokens, hidden_size) of the next positions."""
        self._parts.append(states)
        self.n_states += states.shape[0]
        self._n_single_rows = self._n_single_rows + 1 if states.shape[0] == 1 else 0
        if self._n_single_rows == _JOINED_ROWS:
            self._parts[-_JOINED_ROWS:] = [torch.cat(self._parts[-_JOINED_ROWS:])]
            self._n_single_rows = 0

    def states(self, start: int, end: int) -> torch.Tensor:
        """The hidden states of [start, end), all of which are kept."""
        assert 0 <= start < end <= self.n_states
        self._join()
        return self._parts[0][start:end]

    def forget_states(self, position: int) -> None:
        """Keep no states from `position` on: they are computed anew."""
        if position < self.n_states:
            self._join()
            self._parts = [self._parts[0][:position]] if position else []
            self.n_states = position

    def _join(self) -> None:
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        self._n_single_rows = 0
