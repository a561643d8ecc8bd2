"""The rounds that a head sends through the ring: the token that the tail fed, and guesses of what comes after it.

The tail feeds the first token that wasn't guessed right, so its position says how many guesses before it have held.
Guesses come from the text itself, or from a draft model where there is one and it promises more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol.messages import MAX_DRAFTS, FeedToken
from worker.drafts import Draft, Text
from worker.drafts_worth import (
    DEFAULT_SHARES,
    Acceptance,
    DraftShares,
    ModelTimes,
    ModelWorth,
    RoundTimes,
    best_n_drafts,
    best_n_model_drafts,
)


@dataclass(slots=True)
class DraftPrior:
    """What the sessions of a worker tell those that come after them."""

    shares: DraftShares = DEFAULT_SHARES
    """What guesses cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReach:
    """What a draft model can do for a session."""

    times: ModelTimes
    max_positions: int
    """It knows nothing of what comes behind so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of the ring."""

    settled: tuple[int, ...]
    """The tokens that are certain since the round before; the last one is to be run."""
    drafts: tuple[int, ...]
    """Guesses, to be run behind it."""
    n_wanted: int = 0
    """Guesses to be had from the draft model, instead of those: `Rounds.guessed` makes the round of them."""
    read_from: int = 0
    """The first position that the draft model hasn't read."""


class Rounds:
    """Makes the rounds of one session, and learns from what comes of its guesses."""

    def __init__(self, prior: DraftPrior | None, max_positions: int, model: ModelReach | None = None) -> None:
        """Without a prior nothing is guessed, without a draft model all guesses are from the text."""
        self._prior = prior
        self._max_positions = max_positions
        self._n_drafted = self._n_accepted = 0
        self._n_drafted_by_model = self._n_accepted_by_model = 0
        self._text = Text()
        self._acceptance = Acceptance()
        self._times = RoundTimes(DEFAULT_SHARES if prior is None else prior.shares)
        self.n_model_positions = 0 if model is None else model.max_positions
        """The draft model reads so many at most."""
        self._worth = None if model is None else ModelWorth(model.times)
        self._n_read = 0
        """Positions of the text that the draft model has read."""
        self._position = -1
        """Of the token that was fed last."""
        self._began_s = 0.0
        self._guess: Draft | None = None
        """What may come by the text; some of it is being run, unless the draft model was asked."""
        self._drafts: tuple[int, ...] = ()
        """What is being run."""
        self._is_by_model = False

    def next(self, fed: FeedToken, token_ids: Sequence[int], *, n_others: int, now_s: float) -> Round:
        """The round for a token that was fed; `token_ids` are all before it, `n_others` sessions run along."""
        position, token_id = fed.position, fed.token_id
        if self._prior is None:
            return Round(settled=(token_id,), drafts=())
        if self._position < 0:
            self._text.extend((*token_ids[:position], token_id))
            settled: tuple[int, ...] = (token_id,)
        else:
            n_held = position - self._position - 1
            settled = (*self._drafts[:n_held], token_id)
            self._learn(settled, now_s - self._began_s, self._prior)
            self._text.extend(settled)
        self._position, self._began_s = position, now_s
        n_wanted = self._choose(n_others)
        return Round(settled=settled, drafts=self._drafts, n_wanted=n_wanted, read_from=self._n_read)

    def guessed(self, turn: Round, drafts: tuple[int, ...], now_s: float) -> Round:
        """The round with what the draft model guessed; without any guesses if it can't be asked any more."""
        if not drafts or self._worth is None:
            self._worth = None
        elif self._position + 1 - turn.read_from <= MAX_DRAFTS + 1:
            self._worth.took(len(drafts), now_s - self._began_s)
        self._n_read = self._position + max(1, len(drafts))  # all but the last guess
        self._began_s = now_s
        self._drafts, self._is_by_model = drafts, True
        self._n_drafted += len(drafts)
        self._n_drafted_by_model += len(drafts)
        return replace(turn, drafts=drafts, n_wanted=0)

    def figures(self) -> dict[str, int]:
        """For the log: how many tokens were guessed, and how many guesses held; nothing where there were none."""
        figures = {"n_drafted": self._n_drafted, "n_accepted": self._n_accepted} if self._n_drafted else {}
        if self._n_drafted_by_model:
            figures["n_drafted_by_model"] = self._n_drafted_by_model
            figures["n_accepted_by_model"] = self._n_accepted_by_model
        return figures

    def _learn(self, settled: tuple[int, ...], seconds: float, prior: DraftPrior) -> None:
        n_run, n_held = len(self._drafts), len(settled) - 1
        self._times.add(n_run, seconds)
        if n_run:
            self._n_accepted += n_held
            prior.shares = self._times.measured_shares()
        if self._worth is not None:
            self._learn_of_model(self._worth, n_run, n_held)
        if self._guess is not None:
            for index, (guess, token_id) in enumerate(zip(self._guess.token_ids, settled, strict=False)):
                self._acceptance.add(self._guess.n_matched + index, has_held=guess == token_id)

    def _learn_of_model(self, worth: ModelWorth, n_run: int, n_held: int) -> None:
        if not self._is_by_model:
            worth.fade()
            return
        worth.add(n_run, n_held)
        self._n_accepted_by_model += n_held
        self._n_read = min(self._n_read, self._position + 1 + n_held)

    def _choose(self, n_others: int) -> int:
        """Guess from the text, or say how many guesses of the draft model promise more than that."""
        # the last position of all is the answer's last token, which comes out of the position before it
        n_left = self._max_positions - self._position - 2
        n_allowed = min(MAX_DRAFTS, n_left)
        self._guess = self._text.draft(MAX_DRAFTS + 1)  # one more than is ever run: would it have held?
        self._drafts, self._is_by_model = (), False
        n_matched, n_guesses = (0, 0) if self._guess is None else (self._guess.n_matched, n_allowed)
        found = best_n_drafts(n_matched, n_guesses, self._acceptance, self._times, n_others=n_others)
        if self._worth is not None:
            asked = best_n_model_drafts(
                min(n_allowed, self.n_model_positions - self._position - 1),
                self._worth,
                self._times,
                n_others=n_others,
                n_behind=self._position + 1 - self._n_read,
                n_left=n_left,
            )
            if asked.n_drafts and asked.tokens_per_s > found.tokens_per_s:
                return asked.n_drafts
        if self._guess is not None:
            self._drafts = self._guess.token_ids[: found.n_drafts]
            self._n_drafted += len(self._drafts)
        return 0
