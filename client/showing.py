"""From tokens to what can be shown: whole characters, up to a stop string. Outlives every attempt."""

from __future__ import annotations

from client.decoding import TextStream
from client.results import TokenPiece
from client.stopping import cut
from protocol.messages import Token


class Shower:
    """The text of one generation, whatever routes its tokens came by."""

    def __init__(self, text: TextStream | None, stops: tuple[str, ...]) -> None:
        self._text = text
        self._stops = stops
        self._held = ""
        self.is_stopped = False
        self.stop = ""
        """The stop string that it ended by."""

    def piece(self, token: Token) -> TokenPiece:
        """The token's piece; the last token's has everything that was held back."""
        return TokenPiece(
            token_id=token.token_id,
            text=self._shown(token),
            logprob=token.logprob,
            top_logprobs=token.top_logprobs,
        )

    def _shown(self, token: Token) -> str:
        if self._text is None:
            return ""
        new = self._text.push(token.token_id)
        if token.finish_reason is not None:
            new += self._text.flush()
        found = cut(self._held + new, self._stops)
        self._held, self.is_stopped, self.stop = found.held, found.is_stopped, found.stop
        return found.shown + found.held if token.finish_reason is not None else found.shown
