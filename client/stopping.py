"""Stop strings in text that comes in pieces: what can be shown now, and whether it is over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import InvalidRequestError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """`shown` can be shown, `held` may be the beginning of a stop string. Once stopped, nothing is held."""

    shown: str
    held: str
    is_stopped: bool
    stop: str = ""
    """The stop string that was found."""


def checked_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings, each once.

    Raises:
        InvalidRequestError: one is empty or too long, or there are too many.
    """
    unique = tuple(dict.fromkeys(stops))
    if len(unique) > MAX_STOPS:
        raise InvalidRequestError(f"{len(unique)} stop strings; at most {MAX_STOPS} are looked for")
    for stop in unique:
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise InvalidRequestError(
                f"a stop string of {len(stop)} characters; it must have 1 to {MAX_STOP_CHARACTERS}"
            )
    return unique


def cut(text: str, stops: Sequence[str]) -> Cut:
    """Divide `text` (what was held before, and what came now).

    The stop string that is complete first wins, so that the answer doesn't depend on how the text was cut into
    pieces; of two that end together, the longer.
    """
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if found:
        end, start = min(found)
        return Cut(shown=text[:start], held="", is_stopped=True, stop=text[start:end])
    n_held = max((_n_beginning(text, stop) for stop in stops), default=0)
    end = len(text) - n_held
    return Cut(shown=text[:end], held=text[end:], is_stopped=False)


def _n_beginning(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
