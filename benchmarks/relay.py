"""A TCP relay that does to connections what bad networks do: slow links, delays, silence, cuts, flips, refusals.

It stands between any two programs and knows nothing of what they say. What it does is changed while it runs:

    async with Relay("127.0.0.1", 7400) as relay:       # who connects to relay.port reaches port 7400
        relay.delay_s = 2.0
        relay.bits_per_s = 10e6
        relay.hold()                                    # half-open: connections stay, nothing goes through
        relay.release()
        relay.cut_after(1000, "backward")
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.relayed_connection import Direction, Harm, RelayedConnection, Side

PIECE_BYTES = 64 * 1024
PIECE_S = 0.002
"""What a slow link lets out in this time is one piece, so that connections take turns on it."""
MIN_PIECE_BYTES = 1500
"""A packet."""
LEAD_S = 0.005
"""How far a link's sender is ahead of it: more than timers are late, or the link would stand idle in between."""
MAX_DELAYED_PIECES = 256
"""Per connection and direction; then the relay reads no more, and TCP makes the sender wait."""
CONNECT_S = 10.0


class _Piece(NamedTuple):
    due_s: float
    data: bytes
    """Empty: this direction is over."""


@dataclass(eq=False, slots=True)
class _Reordering:
    """Connections that wait for each other, so that the last to come is the first to be opened."""

    n_connections: int
    waiting: list[asyncio.Event] = field(default_factory=list)


class Relay:
    """A port that leads to another one. Use it as an async context manager, from one event loop."""

    def __init__(self, host: str, port: int, *, listen_port: int = 0) -> None:
        self.host = host
        self.port_of_target = port
        """May be changed: connections made from then on go there."""
        self.port = listen_port
        """Where the relay listens, on loopback; 0 until it runs: any free port."""
        self.delay_s = 0.0
        """How much later every byte arrives, in both directions; their order stays."""
        self.bits_per_s: float | None = None
        """What all connections share, in each direction; None: all that the machine can."""
        self.is_refusing = False
        """Whether new connections are reset at once."""
        self.accepted_at_s: deque[float] = deque(maxlen=10_000)
        """The loop's time at which each of the last connections came, refused ones too."""
        self.n_bytes: dict[Direction, int] = {"forward": 0, "backward": 0}
        """Handed on so far."""
        self._harms: dict[Direction, Harm] = {"forward": Harm(), "backward": Harm()}
        self._free_at_s: dict[Direction, float] = {"forward": 0.0, "backward": 0.0}
        """When the link has let out what it was given so far, on the loop's clock."""
        self._has_carried = asyncio.Event()
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._reordering: _Reordering | None = None
        self._pairs: set[RelayedConnection] = set()
        self._server: asyncio.Server | None = None
        self._is_closing = False

    @property
    def n_connections(self) -> int:
        """Connections that are open through the relay."""
        return len(self._pairs)

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._is_closing = True
        self._server.close()
        tasks = [pair.task for pair in self._pairs if pair.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    # -------------------------------------------------------------- what is done to connections

    def hold(self) -> None:
        """Let nothing through from now on, not even the end of a connection: half-open. New ones hang as well."""
        self._is_open.clear()

    def release(self) -> None:
        """Go on after `hold`, with all that was held back."""
        self._is_open.set()

    def cut(self) -> None:
        """Reset every connection now."""
        for pair in tuple(self._pairs):
            pair.reset()

    def cut_after(self, n_bytes: int, direction: Direction, only: RelayedConnection | None = None) -> None:
        """Let `n_bytes` more go in this direction, then reset the connection on which the last of them went."""
        self._harms[direction] = Harm(cut_after_bytes=n_bytes, only=only)

    def flip_at(self, n_bytes: int, direction: Direction, only: RelayedConnection | None = None) -> None:
        """Flip a bit in the byte that comes after `n_bytes` more in this direction; once."""
        self._harms[direction] = Harm(flip_at_byte=n_bytes, only=only)

    async def busy(self, direction: Direction, n_bytes: int) -> RelayedConnection:
        """The connection that is the first to carry so many bytes from now on. The caller has the deadline."""
        before = {connection: connection.n_bytes[direction] for connection in self._pairs}
        while True:
            for connection in self._pairs:
                if connection.n_bytes[direction] - before.get(connection, 0) >= n_bytes:
                    return connection
            self._has_carried.clear()
            await self._has_carried.wait()

    def reorder(self, n_connections: int) -> None:
        """Open the next `n_connections` to the target in reverse order, once all of them have come."""
        self._reordering = _Reordering(n_connections)

    # -------------------------------------------------------------- what carries it out

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_at_s.append(asyncio.get_running_loop().time())
        pair = RelayedConnection(Side(reader, writer), task=asyncio.current_task())
        if self.is_refusing:
            pair.reset()
            return
        self._pairs.add(pair)
        try:
            await self._carry(pair)
        except (OSError, TimeoutError):
            pass  # the target isn't there, or a side has gone: the other one is told by the reset below
        except asyncio.CancelledError:
            # Ended by `__aexit__`; raised on, asyncio's streams (3.11) would report the cancelled task as a fault.
            assert self._is_closing
        except BaseExceptionGroup as group:
            if group.split(OSError)[1] is not None:
                raise
        finally:
            pair.reset()
            self._pairs.discard(pair)

    async def _carry(self, pair: RelayedConnection) -> None:
        await self._turn()
        await self._is_open.wait()
        async with asyncio.timeout(CONNECT_S):
            pair.far = Side(*await asyncio.open_connection(self.host, self.port_of_target))
        async with asyncio.TaskGroup() as tasks:
            self._start(tasks, pair, pair.near, pair.far, "forward")
            self._start(tasks, pair, pair.far, pair.near, "backward")

    def _start(
        self, tasks: asyncio.TaskGroup, pair: RelayedConnection, source: Side, sink: Side, direction: Direction
    ) -> None:
        pieces: asyncio.Queue[_Piece] = asyncio.Queue(MAX_DELAYED_PIECES)
        tasks.create_task(self._read(source, pieces, direction, pair), name=f"relay read {direction}")
        tasks.create_task(self._write(pieces, sink, direction, pair), name=f"relay write {direction}")

    async def _turn(self) -> None:
        """Wait until this connection is the one to be opened."""
        reordering = self._reordering
        if reordering is None:
            return
        turn = asyncio.Event()
        reordering.waiting.append(turn)
        if len(reordering.waiting) == reordering.n_connections:
            self._reordering = None
            reordering.waiting.pop()
        else:
            await turn.wait()
        if reordering.waiting:
            asyncio.get_running_loop().call_soon(reordering.waiting.pop().set)

    async def _read(
        self, source: Side, pieces: asyncio.Queue[_Piece], direction: Direction, pair: RelayedConnection
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"first"
        while data:
            data = await source.reader.read(self._piece_bytes)
            left_at_s = self._left_at_s(len(data), direction, loop.time())
            await pieces.put(_Piece(left_at_s + self.delay_s + pair.delay_s, data))
            # the link is busy till then; what comes meanwhile waits at the sender's, as before a real one
            if (wait_s := left_at_s - LEAD_S - loop.time()) > 0:
                await asyncio.sleep(wait_s)

    @property
    def _piece_bytes(self) -> int:
        if self.bits_per_s is None:
            return PIECE_BYTES
        return min(PIECE_BYTES, max(MIN_PIECE_BYTES, int(self.bits_per_s / 8 * PIECE_S)))

    def _left_at_s(self, n_bytes: int, direction: Direction, now_s: float) -> float:
        """When the last of so many bytes is on its way: one after the other, at the link's speed."""
        if self.bits_per_s is None:
            return now_s
        left_at_s = max(now_s, self._free_at_s[direction]) + 8 * n_bytes / self.bits_per_s
        self._free_at_s[direction] = left_at_s
        return left_at_s

    async def _write(
        self, pieces: asyncio.Queue[_Piece], sink: Side, direction: Direction, pair: RelayedConnection
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await pieces.get()
            if (wait_s := due_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            await self._is_open.wait()
            if not data:
                sink.writer.write_eof()
                return
            harm, is_cut = self._harms[direction], False
            if harm.only in (None, pair):
                data, is_cut = harm.applied(data)
            sink.writer.write(data)
            await sink.writer.drain()
            self.n_bytes[direction] += len(data)
            pair.n_bytes[direction] += len(data)
            self._has_carried.set()
            if is_cut:
                pair.reset()
                return
