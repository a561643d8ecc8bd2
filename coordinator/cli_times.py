"""Spans of time as options have them: 0, 90m, 12h, 8d."""

from __future__ import annotations

import re

from protocol.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(\d{1,9})([smhd]?)")


def seconds_of(option: str, text: str, *, most_days: int) -> int:
    """The seconds that an option says, at most so many days'.

    Raises:
        ConfigError: it isn't a time, lacks its unit, or is too long; the message says which there are.
    """
    found = _TIME.fullmatch(text.strip())
    seconds = int(found[1]) * _UNITS[found[2] or "s"] if found is not None else None
    lacks_unit = found is not None and not found[2] and seconds != 0
    if seconds is None or lacks_unit or seconds > most_days * _UNITS["d"]:
        raise ConfigError(
            f"{option} {text[:40]!r} is no time up to {most_days}d; write 0, 30s, 90m, 12h or {most_days}d"
        )
    return seconds
