"""How much of requests' bodies is kept at once: each may be long, and many may come together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from protocol.errors import OverloadedError
from protocol.ids import KeyId

MOST_BYTES = 256 * 2**20
MOST_OF_ONE_BYTES = 128 * 2**20
"""Of one key: the others have room however much it sends. Eight of the longest bodies."""
RETRY_S = 2.0


class KeptBody:
    """What one request has of the room."""

    def __init__(self, kept: Counter[KeyId], key_id: KeyId, n_bytes: int) -> None:
        self._kept = kept
        self._key_id = key_id
        self._n_bytes = 0
        self.is_of(n_bytes)

    def is_of(self, n_bytes: int) -> None:
        """So long it is, now that it is known; 0: it is kept no longer."""
        self._kept[self._key_id] += n_bytes - self._n_bytes
        self._n_bytes = n_bytes
        if not self._kept[self._key_id]:
            del self._kept[self._key_id]


KEPT_BODY = web.RequestKey("kept_body", KeptBody)


class BodyRoom:
    """Counts bytes from before a body is read until its request is answered: so long it is kept."""

    def __init__(self, *, most_bytes: int = MOST_BYTES, most_of_one_bytes: int = MOST_OF_ONE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._most_of_one_bytes = most_of_one_bytes
        self._kept: Counter[KeyId] = Counter()

    @contextmanager
    def kept(self, key_id: KeyId, n_bytes: int) -> Iterator[KeptBody]:
        """For one request with a body of so many bytes at most.

        Raises:
            OverloadedError: there is no room for it.
        """
        of_one = self._kept[key_id]
        for n_kept, most, whose in (
            (of_one, self._most_of_one_bytes, "with this API key"),
            (self._kept.total(), self._most_bytes, "of all its users"),
        ):
            if n_kept + n_bytes > most:
                raise OverloadedError(
                    f"a body of {n_bytes:,} bytes finds no room: the gateway keeps {n_kept:,} bytes of requests "
                    f"{whose} that it is answering, at most {most:,}. Send it once some are answered",
                    retry_after_s=RETRY_S,
                )
        body = KeptBody(self._kept, key_id, n_bytes)
        try:
            yield body
        finally:
            body.is_of(0)
