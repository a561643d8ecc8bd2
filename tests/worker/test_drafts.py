from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.drafts import LOOKUP_TOKENS, MAX_MATCHED, Draft, Text

# few tokens, so that texts repeat themselves; ids whose bytes look alike across the border of two tokens
TOKEN_IDS = st.sampled_from([0, 1, 2, 256, 65536, 65537, 2**31 - 1])


def text_of(token_ids: list[int]) -> Text:
    text = Text()
    text.extend(token_ids)
    return text


def draft_by_trying(token_ids: list[int], n_tokens: int) -> Draft | None:
    for n_matched in LOOKUP_TOKENS:
        for end in range(len(token_ids) - 1, n_matched - 1, -1):
            if token_ids[end - n_matched : end] == token_ids[-n_matched:]:
                alike = 0
                while alike < min(end, MAX_MATCHED) and token_ids[end - 1 - alike] == token_ids[-1 - alike]:
                    alike += 1
                following = list(token_ids)
                while len(following) < end + n_tokens:
                    following.append(following[len(following) - (len(token_ids) - end)])
                return Draft(token_ids=tuple(following[end : end + n_tokens]), n_matched=alike)
    return None


@given(st.lists(TOKEN_IDS, max_size=60), st.integers(1, 17))
def test_a_draft_is_what_followed_the_latest_of_the_longest_matches(token_ids: list[int], n_tokens: int) -> None:
    assert text_of(token_ids).draft(n_tokens) == draft_by_trying(token_ids, n_tokens)


@given(st.lists(TOKEN_IDS, min_size=1, max_size=20), st.lists(TOKEN_IDS, max_size=20))
def test_a_text_grows_in_any_pieces(first: list[int], second: list[int]) -> None:
    text = text_of(first)
    text.extend(second)
    assert len(text) == len(first) + len(second)
    assert text.draft(4) == text_of(first + second).draft(4)


def test_a_text_that_goes_round_is_guessed_to_go_on_doing_so() -> None:
    assert text_of([9, 1, 2, 3, 1, 2, 3]).draft(7) == Draft(token_ids=(1, 2, 3, 1, 2, 3, 1), n_matched=3)
