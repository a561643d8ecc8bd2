"""A head's rounds against texts that are known beforehand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import SessionId
from protocol.messages import MAX_DRAFTS, FeedToken
from worker.drafts_worth import DraftShares, ModelTimes
from worker.speculation import DraftPrior, ModelReach, Rounds


@dataclass
class Played:
    """What came of playing a text."""

    settled: list[int] = field(default_factory=list)
    n_drafts: list[int] = field(default_factory=list)
    seconds: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)


def play(
    text: list[int],
    n_prompt: int,
    *,
    base_s: float = 1.0,
    share: float = 0.25,
    guessing: float = 0.0,
    prior: DraftPrior | None = None,
) -> Played:
    """Feed `text` from `n_prompt` on to its last token, as a tail does that samples just that.

    A round with guesses takes `guessing` of one without longer, and `share` for each.
    """
    rng = random.Random(2)
    rounds = Rounds(prior or DraftPrior(), max_positions=len(text))
    played, position = Played(), n_prompt
    while position < len(text) - 1:
        fed = FeedToken(session_id=SessionId("s"), position=position, token_id=text[position])
        turn = rounds.next(fed, text[:n_prompt], n_others=0, now_s=played.seconds)
        played.settled += turn.settled
        played.n_drafts.append(len(turn.drafts))
        more = guessing * bool(turn.drafts) + share * len(turn.drafts)
        played.seconds += base_s * (1 + more) * rng.gauss(1.0, 0.05)
        assert position + 1 + len(turn.drafts) < len(text)
        n_held = 0
        while n_held < len(turn.drafts) and turn.drafts[n_held] == text[position + 1 + n_held]:
            n_held += 1
        position += n_held + 1
    played.figures = rounds.figures()
    return played


@given(st.lists(st.integers(0, 3), min_size=3, max_size=80), st.sampled_from([0.0, 0.1, 1.0]))
def test_every_token_is_settled_once_and_in_order(text: list[int], share: float) -> None:
    played = play(text, 1, share=share)
    assert played.settled == text[1 : 1 + len(played.settled)]
    assert len(played.settled) >= len(text) - 2 - MAX_DRAFTS
    assert max(played.n_drafts) <= MAX_DRAFTS


@pytest.mark.parametrize("share", [0.005, 0.25, 1.0])
def test_a_text_that_does_not_repeat_itself_is_left_alone(share: float) -> None:
    rng = random.Random(3)
    text = [rng.randrange(40_000) for _ in range(600)]
    assert sum(play(text, 100, share=share).n_drafts) == 0


def test_a_text_that_only_seems_to_repeat_itself_costs_little() -> None:
    rng = random.Random(4)
    pairs = [(i, i + 1) for i in range(0, 40, 2)]
    text = [token_id for _ in range(300) for token_id in rng.choice(pairs)]  # every other token is anybody's guess
    n_plain = len(text) - 101
    assert play(text, 100, share=0.3).seconds < 1.02 * n_plain


@pytest.mark.parametrize(("share", "at_least"), [(0.01, 8.0), (0.1, 4.0), (0.25, 2.0)])
def test_a_text_that_goes_round_pays_the_more_the_cheaper_guesses_are(share: float, at_least: float) -> None:
    text = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20] * 16
    played = play(text, 30, share=share)
    assert (len(text) - 31) / played.seconds > at_least
    assert played.figures["n_accepted"] <= played.figures["n_drafted"]


def test_where_the_first_guess_costs_most_a_doubtful_one_is_left_and_sure_ones_are_many() -> None:
    rng = random.Random(6)
    line = [rng.randrange(40_000) for _ in range(40)]
    text = []
    for i in range(20):
        doubtful = [(7, 8 + rng.randrange(3), 100_000 + 1_000 * i + j) for j in range(30)]  # one in three holds
        text += [*line, *(token for three in doubtful for token in three)]
    played = play(text, 150, guessing=0.5, share=0.03)  # float32 on a CPU
    assert (len(text) - 151) / played.seconds > 1.29  # 1.24 to 1.27 if each guess is taken to cost as much


def test_sessions_tell_later_ones_what_a_guess_costs() -> None:
    prior = DraftPrior()
    text = [5, 9, 30, 4] * 40
    play(text, 12, share=0.01, prior=prior)
    assert prior.shares.guessing + MAX_DRAFTS * prior.shares.draft < 0.5  # it's 0.16
    assert max(play(text, 12, share=0.01, prior=prior).n_drafts[:3]) >= 8


def test_without_a_prior_nothing_is_guessed() -> None:
    rounds = Rounds(None, max_positions=100)
    for position in range(20, 40):
        fed = FeedToken(session_id=SessionId("s"), position=position, token_id=7)
        turn = rounds.next(fed, [7] * 20, n_others=0, now_s=float(position))
        assert (turn.settled, turn.drafts) == ((7,), ())
    assert rounds.figures() == {}


def play_beside_model(text: list[int], n_prompt: int, says: list[bool], *, guess_s: float = 0.01) -> list[int]:
    """Feed `text` with a draft model beside, whose guesses are right or wrong as it `says`; what was settled.

    What the model has read by then has to be the text, wherever it is told to go on reading.
    """
    reach = ModelReach(times=ModelTimes(guess_s=guess_s, prompt_token_s=0.0), max_positions=len(text))
    rounds = Rounds(DraftPrior(DraftShares(guessing=0.0, draft=0.0)), len(text), reach)
    has_read: list[int] = []
    settled, position, now_s, n_guesses = text[: n_prompt + 1], n_prompt, 0.0, 0
    while position < len(text) - 1:
        fed = FeedToken(session_id=SessionId("s"), position=position, token_id=text[position])
        turn = rounds.next(fed, text[:n_prompt], n_others=0, now_s=now_s)
        settled += turn.settled if position > n_prompt else ()
        if turn.n_wanted:
            assert has_read[: turn.read_from] == text[: turn.read_from]
            assert len(has_read) >= turn.read_from
            right = text[position + 1 : position + 1 + turn.n_wanted]
            assert len(right) == turn.n_wanted
            drafts = [token + (not says[(n_guesses + i) % len(says)]) for i, token in enumerate(right)]
            n_guesses += len(drafts)
            has_read = [*text[: position + 1], *drafts[:-1]]
            now_s += guess_s * len(drafts)
            turn = rounds.guessed(turn, tuple(drafts), now_s)
        n_held = 0
        while n_held < len(turn.drafts) and turn.drafts[n_held] == text[position + 1 + n_held]:
            n_held += 1
        position, now_s = position + n_held + 1, now_s + 1.0
    assert rounds.figures().get("n_drafted_by_model", 0) == n_guesses
    return settled


@given(st.lists(st.integers(0, 3), min_size=3, max_size=80), st.lists(st.booleans(), min_size=1, max_size=9))
def test_a_draft_model_goes_on_from_what_it_has_read_of_the_text(text: list[int], says: list[bool]) -> None:
    settled = play_beside_model(text, 1, says)
    assert settled == text[: len(settled)]


def test_a_draft_model_is_asked_where_the_text_has_nothing_to_offer() -> None:
    rng = random.Random(3)
    text = [rng.randrange(40_000) for _ in range(300)]
    played = play(text, 100, share=0.0)
    assert sum(played.n_drafts) == 0
    rounds = Rounds(
        DraftPrior(), 300, ModelReach(times=ModelTimes(guess_s=0.01, prompt_token_s=0.0), max_positions=300)
    )
    feeds = [FeedToken(session_id=SessionId("s"), position=p, token_id=text[p]) for p in (100, 101, 102)]
    first = rounds.next(feeds[0], text[:100], n_others=0, now_s=0.0)
    assert first.n_wanted == 0  # nobody knows yet what a round takes
    second = rounds.next(feeds[1], text[:100], n_others=0, now_s=1.0)
    assert second.n_wanted > 0
    assert second.read_from == 0
    without = rounds.guessed(second, (), now_s=1.5)  # it failed
    assert (without.drafts, without.n_wanted) == ((), 0)
    assert rounds.next(feeds[2], text[:100], n_others=0, now_s=2.5).n_wanted == 0
