"""Standard input that is no terminal, line by line, as the lines come."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from client.command import MAX_INPUT_BYTES
from protocol.errors import InvalidRequestError, TooLargeError

_CHUNK_BYTES = 2**16


class InputLines:
    """The lines of a descriptor. Waiting for one can be cancelled, so that a program that waits can be ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._begun = b""
        self._n_given = 0
        self._is_over = False

    async def line(self) -> str | None:
        """The next line without its end; None after the last.

        Raises:
            TooLargeError: it is too long.
            InvalidRequestError: it is not UTF-8.
        """
        while not self._lines and not self._is_over:
            self._take(await self._chunk())
        if not self._lines:
            return None
        self._n_given += 1
        try:
            return self._lines.popleft().decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as exc:
            raise InvalidRequestError(
                f"line {self._n_given} of standard input is not UTF-8 at byte {exc.start}: convert it first"
            ) from exc

    def _take(self, chunk: bytes) -> None:
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = self._begun + whole[0]
            self._lines.extend(whole)
            self._begun = b""
        self._begun += rest
        if len(self._begun) > MAX_INPUT_BYTES:
            n_line = self._n_given + len(self._lines) + 1
            raise TooLargeError(f"line {n_line} of standard input has more than {MAX_INPUT_BYTES} bytes")
        if not chunk:
            self._is_over = True
            if self._begun:
                self._lines.append(self._begun)

    async def _chunk(self) -> bytes:
        loop = asyncio.get_running_loop()
        is_readable = asyncio.Event()
        try:
            loop.add_reader(self._descriptor, is_readable.set)
        except (PermissionError, NotImplementedError):  # a file, or Windows: nothing tells when there is more
            return await asyncio.to_thread(os.read, self._descriptor, _CHUNK_BYTES)
        try:
            await is_readable.wait()
        finally:
            loop.remove_reader(self._descriptor)
        return os.read(self._descriptor, _CHUNK_BYTES)
