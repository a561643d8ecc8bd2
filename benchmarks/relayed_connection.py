"""One connection through the relay, and what is done to its bytes."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["forward", "backward"]
"""Forward: from who connected to the target. Backward: the answers."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: close sends RST, as a machine does that has forgotten the connection."""


@dataclass(slots=True)
class Harm:
    """What is still to be done to the bytes of one direction, counted from now over all connections."""

    cut_after_bytes: int | None = None
    flip_at_byte: int | None = None
    only: RelayedConnection | None = None
    """Of this connection alone, not over all."""

    def applied(self, data: bytes) -> tuple[bytes, bool]:
        """The bytes as they go on, and whether the connection is cut after them."""
        if self.flip_at_byte is not None:
            if self.flip_at_byte < len(data):
                data = _flipped(data, self.flip_at_byte)
                self.flip_at_byte = None
            else:
                self.flip_at_byte -= len(data)
        if self.cut_after_bytes is not None:
            if self.cut_after_bytes <= len(data):
                data, self.cut_after_bytes = data[: self.cut_after_bytes], None
                return data, True
            self.cut_after_bytes -= len(data)
        return data, False


@dataclass(eq=False, slots=True)
class Side:
    """One end of a connection through the relay."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Close with RST. Idempotent."""
        raw = self.writer.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.writer.transport.abort()


@dataclass(eq=False, slots=True)
class RelayedConnection:
    """A connection through the relay: who connected, and the target."""

    near: Side
    far: Side | None = None
    task: asyncio.Task[None] | None = None
    delay_s: float = 0.0
    """How much later its bytes arrive than those of others, in both directions."""
    n_bytes: dict[Direction, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})
    """Handed on so far."""

    def reset(self) -> None:
        """Close both ends with RST. Idempotent."""
        for side in (self.near, self.far):
            if side is not None:
                side.reset()


def _flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
