"""Where a generation's time went: what the client sees of it, and what the workers say of theirs.

The client's own phases follow each other without a gap, so together they are all the time that there was. What hops
took is counted by each with its own clock; no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from protocol.hop_timings import HopTimings
from protocol.ids import WorkerId

Phase: TypeAlias = Literal["prepare", "route", "open", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prepare", "route", "open", "prefill", "decode")
_US_PER_S = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimings:
    """Seconds that a generation took on one worker. Stages work at the same time while a prompt is run."""

    worker_id: WorkerId
    start: int
    end: int
    """Blocks [start, end)."""
    memory_s: float
    """Waiting for key-value memory when it was opened: a part of `Timings.open_s`."""
    prefill_queue_s: float
    """Until the first token: in the engine's queue, and on the way to its thread and back."""
    prefill_compute_s: float
    """In the batches that the generation's steps were in."""
    prefill_sampling_s: float
    """On choosing tokens, by the last stage."""
    decode_queue_s: float
    """After the first token, likewise."""
    decode_compute_s: float
    decode_sampling_s: float

    @property
    def decode_s(self) -> float:
        """All that it took after the first token."""
        return self.decode_queue_s + self.decode_compute_s + self.decode_sampling_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds from the call to the last token. The five phases add up to `total_s`, whatever failed in between."""

    total_s: float
    prepare_s: float
    """Before a route was asked for: the model's small files, the chat template, the tokenizer."""
    route_s: float
    """Asking for routes and waiting for them, pauses after failures included."""
    open_s: float
    """Connecting, until every worker had reserved its memory."""
    prefill_s: float
    """From there to the first token."""
    decode_s: float
    """From the first token to the last; after a failure, until it was noticed."""
    wire_s: float
    """Of `decode_s`, what no stage took: the network, framing, and whoever took the tokens. 0 without stages."""
    stages: tuple[StageTimings, ...]
    """In the route's order, after a failure also those of earlier routes; none if a worker is too old to say."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A worker's place in a route."""

    worker_id: WorkerId
    start: int
    end: int


@dataclass(slots=True)
class _Ran:
    """One route, and what its hops said."""

    places: tuple[_Place, ...]
    first: tuple[HopTimings, ...] = ()
    """With the first token."""
    latest: tuple[HopTimings, ...] = ()
    n_tokens: int = 0

    @property
    def is_told(self) -> bool:
        """Whether all hops have said what they took; of a route without a token there is nothing to say."""
        return self.n_tokens == 0 or len(self.places) == len(self.first) == len(self.latest)


@dataclass(slots=True)
class GenerationClock:
    """Where one generation's time goes, from its beginning on. Times are the loop's."""

    began_s: float
    _phase: Phase = "prepare"
    _since_s: float = field(init=False)
    _spent_s: dict[Phase, float] = field(init=False)
    _routes: list[_Ran] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Begin with the first phase."""
        self._since_s = self.began_s
        self._spent_s = dict.fromkeys(PHASES, 0.0)

    def enter(self, phase: Phase, now_s: float) -> None:
        """What comes from `now_s` on is of this phase; the one that it is already goes on."""
        now_s = max(now_s, self._since_s)
        self._spent_s[self._phase] += now_s - self._since_s
        self._phase, self._since_s = phase, now_s

    @property
    def is_opening(self) -> bool:
        """Whether a route was asked to begin, and not all its workers have what that needs."""
        return self._phase == "open"

    def opened(self, now_s: float) -> None:
        """All workers of the route have reserved what is needed; told too late, it is no news."""
        if self._phase == "open":
            self.enter("prefill", now_s)

    def routed(self, places: Sequence[tuple[WorkerId, int, int]]) -> None:
        """There is a route, over these workers and blocks [start, end)."""
        self._routes.append(_Ran(tuple(_Place(*place) for place in places)))

    def took(self, timings: tuple[HopTimings, ...], now_s: float) -> None:
        """A token came by the latest route."""
        route = self._routes[-1]
        self.opened(now_s)
        if route.n_tokens == 0:
            route.first = timings
        route.n_tokens += 1
        if timings:
            route.latest = timings
        self.enter("decode", now_s)

    def timings(self) -> Timings:
        """What there is by now."""
        ran = [route for route in self._routes if route.n_tokens]
        stages = _stages(ran) if all(route.is_told for route in ran) else ()
        decode_s = self._spent_s["decode"]
        wire_s = max(0.0, decode_s - sum(stage.decode_s for stage in stages)) if stages else 0.0
        return Timings(
            total_s=sum(self._spent_s.values()),
            prepare_s=self._spent_s["prepare"],
            route_s=self._spent_s["route"],
            open_s=self._spent_s["open"],
            prefill_s=self._spent_s["prefill"],
            decode_s=decode_s,
            wire_s=wire_s,
            stages=stages,
        )


def _stages(routes: Sequence[_Ran]) -> tuple[StageTimings, ...]:
    """Of all routes; a worker that had the same blocks in several stands there once for each."""
    return tuple(
        StageTimings(
            worker_id=place.worker_id,
            start=place.start,
            end=place.end,
            memory_s=latest.memory_us / _US_PER_S,
            prefill_queue_s=first.queue_us / _US_PER_S,
            prefill_compute_s=first.compute_us / _US_PER_S,
            prefill_sampling_s=first.sampling_us / _US_PER_S,
            decode_queue_s=max(0, latest.queue_us - first.queue_us) / _US_PER_S,
            decode_compute_s=max(0, latest.compute_us - first.compute_us) / _US_PER_S,
            decode_sampling_s=max(0, latest.sampling_us - first.sampling_us) / _US_PER_S,
        )
        for route in routes
        for place, first, latest in zip(route.places, route.first, route.latest, strict=True)
    )
