"""Whether a model may be loaded here as far as its author goes, whatever the coordinator says: it may be hostile.

The signature is kept beside the manifest, so that a worker starts while the coordinator is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog

from protocol.author_keys import AuthorKey
from protocol.background import uninterrupted
from protocol.errors import NotFoundError, UntrustedFileError
from protocol.ids import Revision
from protocol.model_signature import check_author, verified_signature
from worker.model_folders import ModelFolders

log = structlog.get_logger(__name__)


class Authorship:
    """Checks models against the authors whom this worker's operator trusts; without any, all may be loaded."""

    def __init__(
        self,
        trusted: Collection[AuthorKey],
        folders: ModelFolders,
        fetch: Callable[[Revision], Awaitable[bytes]],
    ) -> None:
        """`fetch`: asks the coordinator for the signature of a revision."""
        self._trusted = trusted
        self._folders = folders
        self._fetch = fetch

    async def check(self, revision: Revision) -> None:
        """See that a trusted author signed the manifest of this revision, and so every file by its hash.

        Raises:
            UntrustedFileError: nobody whom this worker trusts has; the message says what to do.
            UnreachableError: the coordinator is away, and the signature isn't here.
        """
        if not self._trusted:
            return
        kept = await asyncio.to_thread(self._folders.signature, revision)
        if kept is not None and self._is_good(kept, revision):
            return
        try:
            envelope = await self._fetch(revision)
            self._check(envelope, revision)
        except NotFoundError as exc:
            raise self._refusal(revision, "it isn't signed") from exc
        except UntrustedFileError as exc:
            raise self._refusal(revision, exc.message) from exc
        await uninterrupted(asyncio.to_thread(self._folders.save_signature, revision, envelope))
        log.info("model_signature_verified", revision=revision)

    def _is_good(self, envelope: bytes, revision: Revision) -> bool:
        try:
            self._check(envelope, revision)
        except UntrustedFileError:
            return False
        return True

    def _check(self, envelope: bytes, revision: Revision) -> None:
        check_author(verified_signature(envelope, revision), self._trusted)

    def _refusal(self, revision: Revision, why: str) -> UntrustedFileError:
        return UntrustedFileError(
            f"this worker loads only models that one of {len(self._trusted)} authors signed (--trust-author), and "
            f"not revision {revision[:12]}: {why}; have the author sign it (`coord model sign`), or start the "
            "worker with his key too"
        )
