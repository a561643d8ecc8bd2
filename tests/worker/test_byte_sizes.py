from __future__ import annotations

import pytest

from worker.byte_sizes import size_text


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (99_949, "99.9 KB"),
        (100_000, "0.1 MB"),
        (727_400_000, "727.4 MB"),
        (8 * 10**9, "8,000.0 MB"),
    ],
)
def test_no_size_is_said_to_be_nothing_that_is_something(n_bytes: int, said: str) -> None:
    assert size_text(n_bytes) == said
