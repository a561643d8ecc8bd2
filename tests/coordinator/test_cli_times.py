from __future__ import annotations

import pytest

from coordinator.cli_times import seconds_of
from protocol.errors import ConfigError


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90m", 5400), ("12h", 43200), ("8d", 691200), ("5s", 5)])
def test_times_are_read(text: str, seconds: int) -> None:
    assert seconds_of("--grace", text, most_days=8) == seconds


@pytest.mark.parametrize("text", ["", "8", "-1h", "8.5h", "1w", "9d", "1e3s", "h"])
def test_what_is_no_time_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--grace .* up to 8d; write 0, 30s, 90m"):
        seconds_of("--grace", text, most_days=8)
