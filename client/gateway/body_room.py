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
    """What one request has of the room: as much as came, unpacked. What is only announced keeps nobody out."""

    def __init__(self, kept: Counter[KeyId], key_id: KeyId) -> None:
        self._kept = kept
        self._key_id = key_id
        self._n_bytes = 0

    def check(self, n_bytes: int) -> None:
        """See that there is room for so much of it. OverloadedError: there isn't."""
        for n_kept, most, whose in (
            (self._kept[self._key_id], MOST_OF_ONE_BYTES, "with this API key"),
            (self._kept.total(), MOST_BYTES, "of all its users"),
        ):
            n_others = n_kept - self._n_bytes
            if n_others + n_bytes > most:
                raise OverloadedError(
                    f"a body of {n_bytes:,} bytes finds no room: the gateway keeps {n_others:,} bytes of other "
                    f"requests {whose}, at most {most:,} in all. Send it once some are answered",
                    retry_after_s=RETRY_S,
                )

    def is_of(self, n_bytes: int) -> None:
        """So much has come by now; 0: it is kept no longer. OverloadedError: there is no room for it."""
        if n_bytes > self._n_bytes:
            self.check(n_bytes)
        self._kept[self._key_id] += n_bytes - self._n_bytes
        self._n_bytes = n_bytes
        if not self._kept[self._key_id]:
            del self._kept[self._key_id]


KEPT_BODY = web.RequestKey("kept_body", KeptBody)


class BodyRoom:
    """Counts bytes from when they are read until their request is answered: so long they are kept."""

    def __init__(self) -> None:
        self._kept: Counter[KeyId] = Counter()

    @contextmanager
    def kept(self, key_id: KeyId, n_said: int) -> Iterator[KeptBody]:
        """For one request, whose body is said to be so long; 0: that isn't said.

        Raises:
            OverloadedError: there is no room for it.
        """
        body = KeptBody(self._kept, key_id)
        body.check(n_said)
        try:
            yield body
        finally:
            body.is_of(0)
