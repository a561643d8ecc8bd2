"""Somebody who answers as a coordinator would at first, and has nothing behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from protocol.codec import encode_json
from protocol.rest import Hello
from protocol.tls import server_context
from tests.support.pki import TestAuthority


@asynccontextmanager
async def saying_hello(folder: Path, hello: Hello, *, stalls: bool = False) -> AsyncIterator[str]:
    """Says hello, and nothing else: what else is asked is refused, or never answered. Yields the address."""

    async def answer(request: web.Request) -> web.Response:
        if request.path != "/v1/hello":
            if stalls:
                await asyncio.Event().wait()
            raise web.HTTPNotFound
        return web.Response(body=encode_json(hello), content_type="application/json")

    files = TestAuthority().worker(folder)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(files.certificate, files.key)).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
