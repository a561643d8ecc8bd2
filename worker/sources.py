"""Where files come from: other workers that have them, then the coordinator; and the coordinator's manifests.

A worker that sent other bytes than a file's is told on to the coordinator, once, and not asked for that file again
for as long as the coordinator doesn't name it either.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import aiohttp
import structlog

from protocol.codec import decode_json, encode_json
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, ConfigError, UnreachableError
from protocol.http_answers import error_of, read_body
from protocol.ids import FileHash, Revision, WorkerId
from protocol.manifest import MAX_MANIFEST_BYTES, ModelFile
from protocol.model_signature import MAX_SIGNATURE_BYTES
from protocol.tls import COORDINATOR_NAME, client_context, worker_name
from protocol.worker_rest import BAD_SOURCE_S, BadSource, SourcesAnswer, SourcesRequest
from worker.config import checked_url
from worker.downloads import FileSource
from worker.enrolment import Credentials, CredentialsHolder

log = structlog.get_logger(__name__)

_ASK_S = 10.0
_MAX_FILES_ASKED = 5000
"""In one request: its body stays under the limit of 1 MiB."""
_MAX_PEERS = 3
"""Peers tried for one file before the coordinator is."""
_REPORT_S = 5.0
"""For telling on a source: the download waits for it."""
_MAX_BAD_SOURCES = 4096
"""Remembered; the oldest go first."""
_NO_SOURCES: Mapping[FileHash, tuple[FileSource, ...]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contexts:
    credentials: Credentials
    coordinator: ssl.SSLContext
    peers: ssl.SSLContext


class Sources:
    """Asks the coordinator who has what."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        credentials: CredentialsHolder,
        worker_id: WorkerId,
        rng: random.Random,
    ) -> None:
        self._session = session
        self._credentials = credentials
        self._worker_id = worker_id
        self._rng = rng
        self._kept: _Contexts | None = None
        self._bad_until_s: dict[tuple[WorkerId, FileHash], float] = {}

    async def of(self, files: Collection[FileHash]) -> Mapping[FileHash, tuple[FileSource, ...]]:
        """Sources of each file in the order in which to try them; the last one is the coordinator."""
        contexts = await self._contexts()
        peers = await self._peers(contexts, tuple(files)[:_MAX_FILES_ASKED])
        coordinator = self._coordinator(contexts)
        return {sha256: (*peers.get(sha256, ()), coordinator) for sha256 in files}

    async def report_bad(self, source: FileSource, file: ModelFile) -> None:
        """Ask this worker for the file no more for a while, and have the coordinator name it to nobody."""
        if source.worker_id is None or self._is_bad(source.worker_id, file.sha256):
            return
        self._bad_until_s[source.worker_id, file.sha256] = asyncio.get_running_loop().time() + BAD_SOURCE_S
        while len(self._bad_until_s) > _MAX_BAD_SOURCES:
            del self._bad_until_s[next(iter(self._bad_until_s))]
        body = encode_json(BadSource(worker_id=source.worker_id, file=file.sha256))
        try:
            async with asyncio.timeout(_REPORT_S):
                await self._ask(await self._contexts(), "POST", "/v1/worker/sources/bad", body)
        except TimeoutError:
            log.warning("bad_source_unreported", source=source.worker_id, file=file.name)
        except BrigadeError as exc:
            log.warning("bad_source_unreported", source=source.worker_id, file=file.name, **error_fields(exc))

    async def manifest(self, revision: Revision) -> bytes:
        """A manifest as the coordinator sends it; the caller checks it.

        Raises:
            UnreachableError: the coordinator is away.
            NotFoundError: it doesn't know the model any more.
        """
        return await self._ask(await self._contexts(), "GET", f"/v1/manifests/{revision}", None, MAX_MANIFEST_BYTES)

    async def signature(self, revision: Revision) -> bytes:
        """The signature of a manifest as the coordinator sends it; the caller checks it.

        Raises:
            UnreachableError: the coordinator is away.
            NotFoundError: it has none, or is of a version that knows no signatures.
        """
        path = f"/v1/manifests/{revision}/signature"
        return await self._ask(await self._contexts(), "GET", path, None, MAX_SIGNATURE_BYTES)

    async def _peers(
        self, contexts: _Contexts, files: tuple[FileHash, ...]
    ) -> Mapping[FileHash, tuple[FileSource, ...]]:
        body = encode_json(SourcesRequest(files=files))
        try:
            answer = decode_json(await self._ask(contexts, "POST", "/v1/worker/sources", body), SourcesAnswer)
        except BrigadeError as exc:
            log.warning("sources_unknown", **error_fields(exc))
            return _NO_SOURCES
        return {sha256: self._usable(answer, sha256, contexts.peers) for sha256 in answer.sources}

    def _usable(self, answer: SourcesAnswer, sha256: FileHash, context: ssl.SSLContext) -> tuple[FileSource, ...]:
        """A few of the peers, in random order so that not all ask the same one."""
        found = []
        for source in answer.sources[sha256]:
            try:
                url = checked_url(source.url, f"the address of {source.worker_id}").rstrip("/")
            except ConfigError as exc:
                log.warning("source_refused", **error_fields(exc))
                continue
            if source.worker_id != self._worker_id and not self._is_bad(source.worker_id, sha256):
                found.append(
                    FileSource(
                        name=source.worker_id,
                        worker_id=source.worker_id,
                        url=url,
                        context=context,
                        server_hostname=worker_name(source.worker_id),
                    )
                )
        self._rng.shuffle(found)
        return tuple(found[:_MAX_PEERS])

    def _is_bad(self, worker_id: WorkerId, sha256: FileHash) -> bool:
        until_s = self._bad_until_s.get((worker_id, sha256))
        if until_s is not None and until_s <= asyncio.get_running_loop().time():
            del self._bad_until_s[worker_id, sha256]
            return False
        return until_s is not None

    def _coordinator(self, contexts: _Contexts) -> FileSource:
        return FileSource(
            name="the coordinator",
            url=contexts.credentials.coordinator_url,
            context=contexts.coordinator,
            server_hostname=COORDINATOR_NAME,
            headers=_authorization(contexts.credentials),
        )

    async def _contexts(self) -> _Contexts:
        """TLS contexts of the credentials in force, made again when those were renewed."""
        current = self._credentials.current
        if self._kept is None or self._kept.credentials is not current:
            self._kept = _Contexts(
                credentials=current,
                coordinator=await asyncio.to_thread(client_context, current.ca_pem),
                peers=await asyncio.to_thread(client_context, current.ca_pem, current.certificate, current.key),
            )
        return self._kept

    async def _ask(
        self, contexts: _Contexts, method: str, path: str, body: bytes | None, max_bytes: int = 2**22
    ) -> bytes:
        try:
            async with (
                asyncio.timeout(_ASK_S),
                self._session.request(
                    method,
                    contexts.credentials.coordinator_url + path,
                    data=body,
                    headers={**_authorization(contexts.credentials), "Content-Type": "application/json"},
                    ssl=contexts.coordinator,
                    server_hostname=COORDINATOR_NAME,
                    allow_redirects=False,
                ) as response,
            ):
                answer = await read_body(response, max_bytes)
                if response.status not in (200, 204):
                    raise error_of(response, answer)
                return answer
        except TimeoutError as exc:
            raise UnreachableError(f"the coordinator didn't answer {path} within {_ASK_S:.0f} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise UnreachableError(f"the coordinator can't be reached: {exc}") from exc


def _authorization(credentials: Credentials) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials.session_token}"}
