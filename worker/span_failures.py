"""Spans that failed here: when each is tried again, and what people are told of that."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping

from protocol.backoff import jittered_delay_s
from protocol.control_messages import SpanAssignment
from protocol.errors import BrigadeError, ConfigError, OverloadedError, UntrustedFileError

_LONGEST_RETRY_S = 60.0
_MEMORY_RETRY_S = 600.0
"""Weights that the device had no memory for aren't read again and again: others may free some, now and then."""
_UNFIT = (ConfigError, UntrustedFileError)
"""What loading says that would be the same the next time: files, precision and device are the same."""
_LESS = "fewer blocks (--blocks) or another --precision"


class SpanFailures:
    """Of the spans that are assigned now. Times are seconds of any clock that goes forward."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._n: dict[SpanAssignment, int] = {}
        self._retry_at_s: dict[SpanAssignment, float] = {}
        self._unfit: set[SpanAssignment] = set()

    @property
    def retry_at_s(self) -> Mapping[SpanAssignment, float]:
        """When those that failed are tried again; infinite: not before something else is assigned."""
        return dict(self._retry_at_s)

    def assigned(self, wanted: Collection[SpanAssignment]) -> None:
        """Something else is assigned: all is tried again but what can't be loaded however often that is tried."""
        self._n.clear()
        self._unfit.intersection_update(wanted)
        self._retry_at_s = dict.fromkeys(self._unfit, math.inf)

    def succeeded(self, span: SpanAssignment) -> None:
        """A step towards holding the span was done."""
        self._n.pop(span, None)
        self._retry_at_s.pop(span, None)

    def refused(self, span: SpanAssignment) -> None:
        """There is no room for it among what is assigned now."""
        self._retry_at_s[span] = math.inf

    def failed(self, span: SpanAssignment, error: BrigadeError, now_s: float, *, while_loading: bool) -> str:
        """Note a failure; returns what it was and what comes next, for people."""
        self._n[span] = n_failures = self._n.get(span, 0) + 1
        if while_loading and isinstance(error, _UNFIT):
            self._unfit.add(span)
            self._retry_at_s[span] = math.inf
            return (
                f"{error.message}; next: start the worker with {_LESS}; it isn't tried again until then, or until "
                "something else is assigned"
            )
        # at least half of the longest delay: what failed on this machine isn't mended in milliseconds
        delay_s = 0.5 + jittered_delay_s(n_failures + 2, self._rng, _LONGEST_RETRY_S)
        mend = ""
        if while_loading and isinstance(error, OverloadedError):
            delay_s, mend = _MEMORY_RETRY_S, f": free memory, or start the worker with {_LESS}"
        self._retry_at_s[span] = now_s + delay_s
        return f"{error.message}; next: try again, for the {n_failures + 1}. time, in {delay_s:.0f} s{mend}"
