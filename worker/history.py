"""What a session's stage has taken and given, by position: the head's token ids, the hidden states sent onwards.

Kept for the case that the session goes on by another route: the ids say how far the new prompt is the old text, the
states are sent again to a hop that hasn't got them. Used on the event loop only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocol.messages import MAX_DRAFTS

_JOINED_PARTS = 64
"""Small parts that are put together: a tensor of its own for every token would cost more than what is in it."""
_SMALL_ROWS = 1 + MAX_DRAFTS


class History:
    """Grows with the session; position 0 comes first, and there are no gaps."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Empty anywhere but at a head."""
        self.n_states = 0
        """Positions whose hidden states are kept."""
        self.n_settled = 0
        """Positions that aren't guesses which may not have held."""
        self._parts: list[torch.Tensor] = []
        self._n_small_parts = 0
        """How many parts at the end are of few rows."""

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
        self._n_small_parts = self._n_small_parts + 1 if states.shape[0] <= _SMALL_ROWS else 0
        if self._n_small_parts == _JOINED_PARTS:
            self._parts[-_JOINED_PARTS:] = [torch.cat(self._parts[-_JOINED_PARTS:])]
            self._n_small_parts = 0

    def states(self, start: int, end: int) -> torch.Tensor:
        """The hidden states of [start, end), all of which are kept."""
        assert 0 <= start < end <= self.n_states
        self._join()
        return self._parts[0][start:end]

    def beginning(self, n_positions: int) -> History:
        """The first so many positions, to go on from in another way; `settle` it before that."""
        beginning = History()
        beginning.token_ids = self.token_ids[:n_positions]
        beginning.n_states = min(n_positions, self.n_states)
        beginning.n_settled = min(n_positions, self.n_settled)
        n_missing = beginning.n_states
        for part in self._parts:
            if n_missing > 0:
                beginning._parts.append(part[:n_missing])
                n_missing -= part.shape[0]
        return beginning

    def settle(self) -> None:
        """Have memory of its own, and no more than it needs. Copies, so not on the event loop."""
        self._parts = [torch.cat(self._parts)] if self._parts else []
        self._n_small_parts = 0

    def forget_states(self, position: int) -> None:
        """Keep no states from `position` on: they are computed anew."""
        while self.n_states > position:
            part = self._parts.pop()
            self._n_small_parts = max(0, self._n_small_parts - 1)
            self.n_states -= part.shape[0]
            if self.n_states < position:
                self.add_states(part[: position - self.n_states])

    def _join(self) -> None:
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        self._n_small_parts = 0
