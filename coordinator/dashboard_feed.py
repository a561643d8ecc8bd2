"""What signed-in operators see live: one view of the cluster for all of them, and what changes in it.

Nothing is worked out while nobody looks. A change is encoded once, whoever reads it. Nothing waits without bound:
who reads slowly loses what waits for it and gets the whole view anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
import structlog

from coordinator.policy.live import Look, View, delta, next_view
from protocol.dashboard_rest import HistoryPoint, LiveDelta, LiveState, StreamEnd
from protocol.errors import OverloadedError
from protocol.ids import KeyId

log = structlog.get_logger(__name__)

TELL_S = 0.25
MAX_STREAMS = 64
MAX_STREAMS_OF_ONE = 8
"""Of one session, or of one key that is shown itself: browsers have six connections to a host."""
MAX_WAITING = 32
"""Events that may wait for one reader: 8 seconds of them."""
MAX_WAITING_BYTES = 4 * 2**20
RETRY_S = 10.0

Reason = Literal["signed_out", "revoked", "expired", "stopping"]
WORDS: dict[Reason, str] = {
    "signed_out": "you have signed out",
    "revoked": "the API key that you signed in with is good no longer",
    "expired": "you weren't here for long: sign in again",
    "stopping": "the coordinator stops; the page comes back with it",
}


class Stream:
    """One reader. `get` gives events as they are to be sent, until one of them is the last."""

    def __init__(self, feed: DashboardFeed, key_id: KeyId, session_id: str) -> None:
        self._feed = feed
        self.key_id = key_id
        self.session_id = session_id
        """Empty for who came with the key itself."""
        self._waiting: deque[bytes] = deque()
        self._n_bytes = 0
        self._is_behind = True
        self._end: bytes | None = None
        self._changed = asyncio.Event()

    def is_end(self, event: bytes) -> bool:
        """Whether an event that `get` gave is the last."""
        return event is self._end

    @property
    def n_waiting(self) -> int:
        """Events that wait to be sent."""
        return len(self._waiting)

    def put(self, event: bytes) -> None:
        """Have an event sent; if too much waits already, the whole view instead of all of it."""
        if not self._is_behind:
            if len(self._waiting) == MAX_WAITING or self._n_bytes + len(event) > MAX_WAITING_BYTES:
                self._waiting.clear()
                self._n_bytes, self._is_behind = 0, True
                log.info("dashboard_reader_slow", key_id=self.key_id)
            else:
                self._waiting.append(event)
                self._n_bytes += len(event)
        self._changed.set()

    def end(self, reason: Reason) -> None:
        """Have this be the last event; what waits before it is dropped. The first reason counts."""
        self._end = self._end or event_bytes("end", StreamEnd(reason=reason, message=WORDS[reason]))
        self._changed.set()

    async def get(self) -> bytes:
        """The next event; waits as long as it takes (samples come every few seconds)."""
        while True:
            self._changed.clear()
            if self._end is not None:
                return self._end
            if self._is_behind and (snapshot := self._feed.snapshot()) is not None:
                self._is_behind = False
                return snapshot
            if not self._is_behind and self._waiting:
                event = self._waiting.popleft()
                self._n_bytes -= len(event)
                return event
            await self._changed.wait()


class DashboardFeed:
    """The streams and the view. `look` says how everything is now."""

    def __init__(self, look: Callable[[], Awaitable[Look]]) -> None:
        self._look = look
        self._view: View | None = None
        self._at_s = 0.0
        self._n_events = 0
        self._snapshot: bytes | None = None
        self._streams: set[Stream] = set()
        self._has_readers = asyncio.Event()
        self._is_stopping = False

    @contextmanager
    def reading(self, key_id: KeyId, session_id: str) -> Iterator[Stream]:
        """A stream, for as long as somebody reads it.

        Raises:
            OverloadedError: there are too many.
        """
        if self._is_stopping or len(self._streams) >= MAX_STREAMS:
            raise OverloadedError(
                f"{len(self._streams)} pages follow the cluster already, at most {MAX_STREAMS} can: close some",
                retry_after_s=RETRY_S,
            )
        n_own = sum((one.key_id, one.session_id) == (key_id, session_id) for one in self._streams)
        if n_own >= MAX_STREAMS_OF_ONE:
            raise OverloadedError(
                f"{n_own} pages of this sign-in follow the cluster already, at most {MAX_STREAMS_OF_ONE} can",
                retry_after_s=RETRY_S,
            )
        stream = Stream(self, key_id, session_id)
        self._streams.add(stream)
        self._has_readers.set()
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._has_readers.clear()

    def snapshot(self) -> bytes | None:
        """The whole view as an event, encoded once for all who want it; None while there is none."""
        if self._view is None:
            return None
        if self._snapshot is None:
            view = self._view
            state = LiveState(
                at_s=self._at_s,
                cluster=view.cluster,
                models=view.models,
                workers=view.workers,
                generations=view.generations,
            )
            self._snapshot = event_bytes("snapshot", state, self._n_events)
        return self._snapshot

    def put_sample(self, point: HistoryPoint) -> None:
        """Tell all readers of new values of the histories."""
        event = event_bytes("sample", point) if self._streams else b""
        for stream in self._streams:
            stream.put(event)

    def end_session(self, session_id: str) -> None:
        """End the streams of a session that was signed out of."""
        self._end("signed_out", lambda stream: stream.session_id == session_id)

    def end_key(self, key_id: KeyId) -> None:
        """End the streams of a key that was revoked."""
        self._end("revoked", lambda stream: stream.key_id == key_id)

    def stop(self) -> None:
        """End all streams, and begin none."""
        self._is_stopping = True
        self._end("stopping", lambda _: True)

    async def tell_forever(self, *, every_s: float = TELL_S) -> None:
        """While somebody reads, tell what has changed, every `every_s` seconds; until cancelled."""
        while True:
            await self._has_readers.wait()
            await self.tell()
            await asyncio.sleep(every_s)
            if not self._streams:
                self._view = self._snapshot = None

    async def tell(self) -> None:
        """Look at everything, and tell what has changed since. In a thread: a large fleet takes long."""
        look = await self._look()
        before = self._view
        after, changed = await asyncio.to_thread(_seen, before, look)
        self._view, self._at_s = after, look.now_s
        is_news = changed is None or changed.cluster or changed.models or changed.workers or changed.generations
        if not is_news:
            return
        self._n_events, self._snapshot = self._n_events + 1, None
        event = b"" if changed is None else event_bytes("delta", changed, self._n_events)
        for stream in self._streams:
            stream.put(event)

    def _end(self, reason: Reason, is_meant: Callable[[Stream], bool]) -> None:
        for stream in self._streams:
            if is_meant(stream):
                stream.end(reason)


def _seen(before: View | None, look: Look) -> tuple[View, LiveDelta | None]:
    after = next_view(before or View(), look)
    return after, None if before is None else delta(before, after, look.now_s)


def event_bytes(name: str, data: msgspec.Struct, event_id: int | None = None) -> bytes:
    """An event of a stream (`text/event-stream`). JSON has no line breaks of its own."""
    lines = [] if event_id is None else [f"id: {event_id}".encode()]
    lines += [b"event: " + name.encode(), b"data: " + msgspec.json.encode(data), b"", b""]
    return b"\n".join(lines)
