from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from client.decoding import TextStream
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer

VOCABULARY = tiny_tokenizer().get_vocab_size()
token_ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=60)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


def llama_like() -> Tokenizer:
    """Words with a space of their own, bytes as fallback, the first space taken off."""
    words = ["<unk>", "<s>", "\u2581the", "\u2581cat", "s", "\u2581", "!"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate([*words, *bytes_])}, merges=[], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@given(token_ids)
def test_all_pieces_together_are_the_tokenizers_own_text(ids: list[int]) -> None:
    expected = tiny_tokenizer().decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(tiny_tokenizer(), ids)) == expected


@given(st.text(max_size=30))
def test_text_is_never_shown_broken(text: str) -> None:
    ids = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    assert "".join(pieces_of(tiny_tokenizer(), ids)) == text.replace("\ufffd", "\ufffd")
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces_of(tiny_tokenizer(), ids))


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), max_size=20))
def test_words_with_spaces_of_their_own(ids: list[int]) -> None:
    tokenizer = llama_like()
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_out_of_fallback_bytes_comes_whole() -> None:
    tokenizer = llama_like()
    ids = [2, *(7 + value for value in "\N{EURO SIGN}".encode()), 4]
    assert pieces_of(tokenizer, ids) == ["the", "", "", "\N{EURO SIGN}", "s", ""]


def test_special_tokens_show_nothing() -> None:
    assert pieces_of(tiny_tokenizer(), [0, *ids_of("a"), 3, 3]) == ["", "a", "", "", ""]


def test_bytes_that_never_become_text_come_out_at_the_end() -> None:
    broken = ids_of("\N{EURO SIGN}")[:2]
    assert pieces_of(tiny_tokenizer(), broken) == ["", "", "\ufffd"]


@pytest.mark.parametrize("ids", [ids_of("\N{EURO SIGN}")[:1] * 500, [3] * 500])
def test_a_long_run_that_is_no_text_is_not_held_for_ever(ids: list[int]) -> None:
    stream = TextStream(tiny_tokenizer())
    for token_id in ids:
        stream.push(token_id)
        assert len(stream._window) < 200
    assert stream.flush() is not None


def test_special_tokens_that_are_asked_for_have_their_text() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("the<|im_end|>é<|im_start|>", add_special_tokens=False).ids
    stream = TextStream(tokenizer, {3: "<|im_end|>"})
    assert "".join([*map(stream.push, ids), stream.flush()]) == "the<|im_end|>é"
    broken = TextStream(tokenizer, {3: "<|im_end|>"})
    half = tokenizer.encode("é", add_special_tokens=False).ids[:1]
    assert "".join(map(broken.push, [*half, 3])) == "\N{REPLACEMENT CHARACTER}<|im_end|>"
