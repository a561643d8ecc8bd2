"""A download that is cancelled leaves no file open, wherever it was cut: its threads go on without it."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
from pathlib import Path

import aiohttp
from aiohttp import web

from protocol.ids import FileHash
from protocol.manifest import ModelFile
from protocol.tls import client_context, server_context, worker_name
from tests.support.open_files import WatchedThreads, is_open
from tests.support.pki import TestAuthority
from worker.downloads import Downloader, FileSource
from worker.files import FileCache

DATA = bytes(1000)
FILE = ModelFile(name="block-0", sha256=FileHash(hashlib.sha256(DATA).hexdigest()), size_bytes=len(DATA))


async def test_cancelled_twice_while_no_thread_is_free_to_close_it(tmp_path: Path) -> None:
    threads, busy, reached = WatchedThreads(1), threading.Event(), asyncio.Event()
    threads.may_begin.set()
    asyncio.get_running_loop().set_default_executor(threads)

    async def slow(_request: web.Request) -> web.StreamResponse:
        asyncio.get_running_loop().run_in_executor(None, busy.wait)
        reached.set()
        await asyncio.Event().wait()
        return web.Response()

    authority = TestAuthority()
    files, app = authority.worker(tmp_path), web.Application()
    app.router.add_get(f"/v1/files/{FILE.sha256}", slow)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(files.certificate, files.key)).start()
        source = FileSource(
            name="slow",
            url=f"https://127.0.0.1:{runner.addresses[0][1]}",
            context=client_context(authority.ca_pem),
            server_hostname=worker_name(files.worker_id),
        )
        cache = FileCache(tmp_path / "cache")
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession() as session,
            asyncio.TaskGroup() as tasks,
        ):
            fetching = Downloader(session, cache, lambda: 1.0).fetch(FILE, [source], lambda _source, _n: None)
            task = tasks.create_task(fetching)
            await reached.wait()
            assert is_open(cache.part_path(FILE.sha256))
            task.cancel()
            await threads.given[2].wait()  # it is to be closed: after the one that keeps the thread
            task.cancel()
            await asyncio.sleep(0)
            busy.set()
        assert not is_open(cache.part_path(FILE.sha256))
    finally:
        busy.set()
        await runner.cleanup()


async def test_cancelled_while_a_thread_is_about_to_open_it(tmp_path: Path) -> None:
    threads = WatchedThreads(2)
    asyncio.get_running_loop().set_default_executor(threads)
    cache = FileCache(tmp_path / "cache")
    path = cache.part_path(FILE.sha256)
    path.write_bytes(DATA[:10])
    source = FileSource(
        name="none", url="https://127.0.0.1:1", context=ssl.create_default_context(), server_hostname="none"
    )
    try:
        async with asyncio.timeout(20), aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            fetching = Downloader(session, cache, lambda: 1.0).fetch(FILE, [source], lambda _source, _n: None)
            task = tasks.create_task(fetching)
            await threads.given[0].wait()
            task.cancel()
            await threads.given[1].wait()
            await asyncio.wrap_future(threads.jobs[1])  # closed, before it was opened
            threads.may_begin.set()
    finally:
        threads.may_begin.set()
    await asyncio.to_thread(threads.jobs[0].exception)
    assert not is_open(path)
