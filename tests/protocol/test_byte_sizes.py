from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.byte_sizes import human_bytes


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (100_140_000, "100.1 MB"),
        (8 * 10**9, "8.0 GB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_sizes_are_in_powers_of_a_thousand(n_bytes: int, said: str) -> None:
    assert human_bytes(n_bytes) == said


@given(st.integers(min_value=0, max_value=2**60))
def test_sizes_have_few_digits(n_bytes: int) -> None:
    assert len(human_bytes(n_bytes)) <= 13
