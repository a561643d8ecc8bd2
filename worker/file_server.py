"""Serves this worker's model files to other workers of the cluster."""

from __future__ import annotations

import asyncio

from aiohttp import web

from protocol.errors import ForbiddenError, OverloadedError
from protocol.file_answers import CHUNK_S, file_answer
from protocol.ids import FileHash
from protocol.tls import peer_worker_id
from worker.files import FileCache

MAX_DOWNLOADS = 16
"""Files sent at the same time; whoever comes then is told to ask somebody else."""


class FileServer:
    """`GET /v1/files/{sha256}` with Range, for whoever shows a worker's certificate."""

    def __init__(self, cache: FileCache, *, max_downloads: int = MAX_DOWNLOADS, chunk_s: float = CHUNK_S) -> None:
        self._cache = cache
        self._chunk_s = chunk_s
        self._max_downloads = max_downloads
        self._n_downloads = 0

    def add_routes(self, app: web.Application) -> None:
        """Put the route into the worker's web application."""
        app.router.add_get("/v1/files/{sha256}", self._serve, allow_head=False)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None or peer_worker_id(transport.get_extra_info("ssl_object")) is None:
            raise ForbiddenError("model files are for workers of this cluster: no worker's certificate was shown")
        if self._n_downloads >= self._max_downloads:
            raise OverloadedError(f"{self._n_downloads} files are being sent already", retry_after_s=1.0)
        self._n_downloads += 1
        try:
            path = await asyncio.to_thread(self._cache.checked_path, FileHash(request.match_info["sha256"]))
            return await file_answer(request, path, chunk_s=self._chunk_s)
        finally:
            self._n_downloads -= 1
