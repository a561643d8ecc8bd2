"""The rounds that a head sends through the ring: the token that the tail fed, and guesses of what comes after it.

The tail feeds the first token that wasn't guessed right, so its position says how many guesses before it have held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.messages import MAX_DRAFTS, FeedToken
from worker.drafts import Draft, Text
from worker.drafts_worth import DEFAULT_DRAFT_SHARE, Acceptance, RoundTimes, best_n_drafts


@dataclass(slots=True)
class DraftPrior:
    """What the sessions of a worker tell those that come after them."""

    draft_share: float = DEFAULT_DRAFT_SHARE
    """What a guess costs, as a share of a round without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of the ring."""

    settled: tuple[int, ...]
    """The tokens that are certain since the round before; the last one is to be run."""
    drafts: tuple[int, ...]
    """Guesses, to be run behind it."""


class Rounds:
    """Makes the rounds of one session, and learns from what comes of its guesses."""

    def __init__(self, prior: DraftPrior | None, max_positions: int) -> None:
        """Without a prior nothing is guessed."""
        self.n_drafted = 0
        self.n_accepted = 0
        self._prior = prior
        self._max_positions = max_positions
        self._text = Text()
        self._acceptance = Acceptance()
        self._times = RoundTimes(DEFAULT_DRAFT_SHARE if prior is None else prior.draft_share)
        self._position = -1
        """Of the token that was fed last."""
        self._began_s = 0.0
        self._guess: Draft | None = None
        """What may come, of which the first `n_run` tokens are being run."""
        self._n_run = 0

    def next(self, fed: FeedToken, token_ids: Sequence[int], *, n_others: int, now_s: float) -> Round:
        """The round for a token that was fed; `token_ids` are all before it, `n_others` sessions run along."""
        position, token_id = fed.position, fed.token_id
        if self._prior is None:
            return Round(settled=(token_id,), drafts=())
        if self._position < 0:
            self._text.extend((*token_ids[:position], token_id))
            settled: tuple[int, ...] = (token_id,)
        else:
            settled = self._settled(position - self._position - 1, token_id)
            self._learn(settled, now_s - self._began_s, self._prior)
            self._text.extend(settled)
        self._position, self._began_s = position, now_s
        return Round(settled=settled, drafts=self._drafts(n_others))

    def figures(self) -> dict[str, int]:
        """For the log: how many tokens were guessed, and how many guesses held; nothing where there were none."""
        return {"n_drafted": self.n_drafted, "n_accepted": self.n_accepted} if self.n_drafted else {}

    def _settled(self, n_held: int, token_id: int) -> tuple[int, ...]:
        held = self._guess.token_ids[:n_held] if self._guess is not None else ()
        return (*held, token_id)

    def _learn(self, settled: tuple[int, ...], seconds: float, prior: DraftPrior) -> None:
        self._times.add(self._n_run, seconds)
        if self._n_run:
            self.n_accepted += len(settled) - 1
            prior.draft_share = self._times.draft_s / self._times.base_s
        if self._guess is not None:
            for index, (guess, token_id) in enumerate(zip(self._guess.token_ids, settled, strict=False)):
                self._acceptance.add(self._guess.n_matched + index, has_held=guess == token_id)

    def _drafts(self, n_others: int) -> tuple[int, ...]:
        # the last position of all is the answer's last token, which comes out of the position before it
        n_allowed = min(MAX_DRAFTS, self._max_positions - self._position - 2)
        self._guess = self._text.draft(MAX_DRAFTS + 1)  # one more than is ever run: would it have held?
        self._n_run = 0
        if self._guess is None:
            return ()
        self._n_run = best_n_drafts(
            self._guess.n_matched, n_allowed, self._acceptance, self._times, n_others=n_others
        )
        self.n_drafted += self._n_run
        return self._guess.token_ids[: self._n_run]
