"""Texts of earlier generations whose caches the workers may still have, and which of them a new prompt begins as.

Token ids are compared, not text: a chat template lays the same conversation out again, mostly with the same ids,
and as far as they agree nothing has to be run again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.ids import Revision, SessionId
from protocol.messages import SharedPrefix

MIN_SHARED = 32
"""Positions in common that are worth the round trip in which the workers say what they have."""
MAX_SESSIONS = 64
"""As many as a worker keeps."""
MAX_TOKENS = 2**18
"""Of all texts together: a few megabytes."""
_N_REPLACED = 8
"""Positions by which a longer text may fall short of an earlier one and still take its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    revision: Revision
    token_ids: tuple[int, ...]
    """That were run."""


class PrefixIndex:
    """Of one client. Bounded: what was used longest ago is forgotten first."""

    def __init__(self, *, max_sessions: int = MAX_SESSIONS, max_tokens: int = MAX_TOKENS) -> None:
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._n_tokens = 0
        self._texts: OrderedDict[SessionId, _Text] = OrderedDict()

    def shared(self, revision: Revision, prompt: tuple[int, ...]) -> SharedPrefix | None:
        """The session with which the prompt has most in common, and how much; None if that is too little.

        The prompt's last token has to be run in any case.
        """
        to_share = prompt[:-1]
        n_most, best = MIN_SHARED, None
        for session_id, text in self._texts.items():
            if text.revision == revision and text.token_ids[:MIN_SHARED] == to_share[:MIN_SHARED]:
                n_shared = n_common(text.token_ids, to_share)
                if n_shared >= n_most:  # of equals the latest: workers have kept it most likely
                    n_most, best = n_shared, session_id
        if best is None:
            return None
        self._texts.move_to_end(best)
        return SharedPrefix(session_id=best, n_positions=n_most)

    def add(self, revision: Revision, session_id: SessionId, token_ids: Sequence[int]) -> None:
        """Remember a session by the tokens that were run in it; what it begins as is replaced by it."""
        ran = tuple(token_ids)
        if len(ran) < MIN_SHARED or len(ran) > self._max_tokens:
            return
        for other_id, other in tuple(self._texts.items()):
            is_same_model = other.revision == revision
            if is_same_model and n_common(other.token_ids, ran) + _N_REPLACED >= len(other.token_ids):
                self.forget(other_id)
        self._texts[session_id] = _Text(revision=revision, token_ids=ran)
        self._n_tokens += len(ran)
        while len(self._texts) > self._max_sessions or self._n_tokens > self._max_tokens:
            self.forget(next(iter(self._texts)))

    def forget(self, session_id: SessionId) -> None:
        """The workers haven't got it any more. Nothing happens if it isn't known."""
        text = self._texts.pop(session_id, None)
        if text is not None:
            self._n_tokens -= len(text.token_ids)


def n_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many of their first tokens are the same. By halving, as comparing slices is quick."""
    longest = min(len(one), len(other))
    if one[:longest] == other[:longest]:
        return longest
    return bisect_left(range(1, longest + 1), x=True, key=lambda n: one[:n] != other[:n])
