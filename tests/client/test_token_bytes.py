from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from client.token_bytes import TokenBytes
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_bytes_of_all_tokens_are_the_text(text: str) -> None:
    of = TokenBytes(tiny_tokenizer()).of
    assert b"".join(map(of, ids_of(text))).decode() == text or "<" in text


def test_special_tokens_byte_tokens_and_strange_ids() -> None:
    assert TokenBytes(tiny_tokenizer()).of(3) == b"<|im_end|>"
    assert TokenBytes(tiny_tokenizer()).of(99_999) == b""
    pieces = Tokenizer(models.BPE(vocab={"<0x0A>": 0, "\u2581the": 1}, merges=[]))
    pieces.decoder = decoders.Metaspace()
    assert [TokenBytes(pieces).of(token_id) for token_id in (0, 1)] == [b"\n", b" the"]
