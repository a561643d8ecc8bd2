"""Block ranges and model names: what is taken, what is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidRequestError
from protocol.ids import MAX_BLOCKS, BlockRange, block_range_from_text, checked_model_name


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 2), (-1, 4), (0, MAX_BLOCKS + 1)])
def test_an_empty_negative_or_absurd_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"{start}:{end}"):
        BlockRange(start, end)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"start": start, "end": end}, BlockRange)


@given(a=st.integers(0, 20), n=st.integers(1, 20), b=st.integers(0, 20), m=st.integers(1, 20))
def test_contains_and_overlaps_agree_with_sets(a: int, n: int, b: int, m: int) -> None:
    one, other = BlockRange(a, a + n), BlockRange(b, b + m)
    blocks, others = set(range(a, a + n)), set(range(b, b + m))
    assert one.contains(other) == (others <= blocks)
    assert one.overlaps(other) == bool(blocks & others)
    assert len(one) == n


def test_a_range_is_read_as_it_is_written() -> None:
    assert block_range_from_text(" 0:10 ") == BlockRange(0, 10)
    assert str(BlockRange(3, 7)) == "3:7"


@pytest.mark.parametrize("text", ["", "3", "a:b", "5:5", "7:3", "-1:3", "0:99999", "1:2:3", "0x1:0x2"])
def test_what_is_no_range_is_refused_with_the_text_or_the_numbers(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="range"):
        block_range_from_text(text)


@pytest.mark.parametrize("name", ["a", "smollm2", "Qwen3-0.6B", "x" * 64])
def test_a_plain_name_is_taken(name: str) -> None:
    assert checked_model_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "-a", "a.", "x" * 65, "a\n", "é"])
def test_a_name_that_could_leave_a_folder_or_a_url_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="model's name"):
        checked_model_name(name)
