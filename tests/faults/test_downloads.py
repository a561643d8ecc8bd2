"""Downloads from servers that break off, lie, stall and fill the disk: the right bytes arrive, or a reason does."""

from __future__ import annotations

import asyncio
import resource
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.app import RunningCoordinator
from protocol.control_messages import Assign
from protocol.errors import StorageError, UnreachableError
from protocol.tls import server_context
from tests.support.bad_file_server import (
    DATA,
    FILE,
    FileNet,
    Handler,
    answering,
    cutting,
    dripping,
    file_net,
    honest,
    lying_about_length,
    redirecting,
    stalling,
    without_ranges,
)
from tests.support.coordinators import running_coordinator
from tests.support.fetching import fetching_into, joined_sources
from tests.support.joining import WorkerKey, enrolled
from tests.support.scripted_worker import announcement, joined_worker
from tests.support.stored_model import add_model
from worker.files import FileCache

FLIPPED = DATA[:70_000] + bytes([DATA[70_000] ^ 1]) + DATA[70_001:]
slow_example = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def start_of(asked: tuple[str, str | None]) -> int:
    assert asked[1] is not None
    return int(asked[1].removeprefix("bytes=").removesuffix("-"))


@given(n_bytes=st.integers(0, len(DATA)))
@slow_example
def test_cut_after_any_byte_the_next_source_goes_on_from_there(n_bytes: int) -> None:
    async def cut_and_resumed(folder: Path) -> None:
        async with file_net(folder) as net:
            bad, good = await net.source("bad", cutting(n_bytes)), await net.source("good", honest())
            assert (await net.fetch(bad, good)).read_bytes() == DATA
            assert net.told_on == []
            if n_bytes < len(DATA):
                assert start_of(net.asked[-1]) == n_bytes

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(cut_and_resumed(Path(folder)))


@given(cuts=st.lists(st.integers(1, len(DATA) - 1), min_size=1, max_size=5))
@slow_example
def test_cut_again_and_again_it_comes_from_the_same_source_in_the_end(cuts: list[int]) -> None:
    async def cut_often(folder: Path) -> None:
        async with file_net(folder) as net:
            sources = [await net.source(f"try {i}", cutting(n)) for i, n in enumerate(cuts)]
            for source in sources:
                if FILE.sha256 not in net.cache.hashes():
                    with suppress(UnreachableError):
                        await net.fetch(source)
                        continue
                    assert net.part() == DATA[: len(net.part())]
            if FILE.sha256 not in net.cache.hashes():
                await net.fetch(await net.source("last", honest()))
            assert net.cache.path(FILE.sha256).read_bytes() == DATA
            starts = [start_of(asked) for asked in net.asked]
            assert starts == sorted(starts)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(cut_often(Path(folder)))


async def test_from_a_peer_that_dies_to_another_peer_to_the_coordinator(tmp_path: Path) -> None:
    async with file_net(tmp_path) as net:
        sources = [
            await net.source("peer 1", cutting(50_000)),
            await net.source("peer 2", cutting(60_000)),
            await net.coordinator(honest()),
        ]
        assert (await net.fetch(*sources)).read_bytes() == DATA
        assert [(name, start_of((name, wanted))) for name, wanted in net.asked] == [
            ("peer 1", 0),
            ("peer 2", 50_000),
            ("the coordinator", 110_000),
        ]


async def test_a_stalled_source_is_left_and_what_it_sent_is_kept(tmp_path: Path) -> None:
    async with file_net(tmp_path, stall_s=0.5) as net:
        bad, good = await net.source("bad", stalling(100_000)), await net.source("good", honest())
        assert (await net.fetch(bad, good)).read_bytes() == DATA
        assert start_of(net.asked[-1]) == 100_000
        assert net.told_on == []


async def test_a_source_that_drips_is_left(tmp_path: Path) -> None:
    async with file_net(tmp_path, piece_s=1.0) as net:
        bad, good = await net.source("bad", dripping(0.05)), await net.source("good", honest())
        assert (await net.fetch(bad, good)).read_bytes() == DATA
        assert start_of(net.asked[-1]) > 0


async def test_a_source_that_takes_connections_and_says_nothing_is_left(tmp_path: Path) -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    async with file_net(tmp_path, stall_s=0.5) as net, await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        good = await net.source("good", honest())
        stopped = await net.source("stopped", honest())
        port = server.sockets[0].getsockname()[1]
        object.__setattr__(stopped, "url", f"https://127.0.0.1:{port}")
        assert (await net.fetch(stopped, good)).read_bytes() == DATA
        gone.set()


@pytest.mark.parametrize(
    "bad",
    [
        honest(FLIPPED),
        without_ranges(FLIPPED),
        honest(DATA + b"x"),
        honest(DATA[:-1]),
        without_ranges(DATA + b"x"),
        without_ranges(DATA[:-1]),
        lying_about_length(len(DATA) + 1),
    ],
    ids=["flipped", "flipped-200", "longer", "shorter", "longer-200", "shorter-200", "length"],
)
async def test_wrong_bytes_are_refetched_elsewhere_and_told_on(tmp_path: Path, bad: Handler) -> None:
    async with file_net(tmp_path) as net:
        sources = await net.source("bad", bad), await net.source("good", honest())
        assert (await net.fetch(*sources)).read_bytes() == DATA
        assert net.told_on == ["bad"]


async def test_wrong_bytes_are_not_kept(tmp_path: Path) -> None:
    async with file_net(tmp_path) as net:
        with pytest.raises(UnreachableError, match="bad: bad sent other bytes for block-0"):
            await net.fetch(await net.source("bad", honest(FLIPPED)))
        assert net.part() == b""
        assert net.cache.hashes() == ()


async def test_who_completes_another_s_wrong_part_is_not_told_on(tmp_path: Path) -> None:
    async with file_net(tmp_path) as net:
        poisoning = await net.source("poisoning", cutting(80_000, FLIPPED))
        good = await net.source("good", honest())
        assert (await net.fetch(poisoning, good)).read_bytes() == DATA
        assert [start_of(asked) for asked in net.asked] == [0, 80_000, 0]
        assert net.told_on == []


@pytest.mark.parametrize("n_had", [0, 1000])
async def test_a_source_without_ranges_sends_all_again(tmp_path: Path, n_had: int) -> None:
    async with file_net(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(DATA[:n_had])
        assert (await net.fetch(await net.source("old", without_ranges()))).read_bytes() == DATA


async def test_a_wrong_whole_offered_for_a_good_part_does_not_cost_the_part(tmp_path: Path) -> None:
    async with file_net(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(DATA[:90_000])
        sources = await net.source("page", without_ranges(b"<html>")), await net.source("good", honest())
        assert (await net.fetch(*sources)).read_bytes() == DATA
        assert start_of(net.asked[-1]) == 90_000


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (answering(404), "status 404"),
        (answering(500), "status 500"),
        (answering(503, b'{"error":{"code":"overloaded","message":"busy"}}'), "busy"),
        (answering(416), "status 416"),
        (redirecting("https://127.0.0.1:1/elsewhere"), "status 302"),
    ],
)
async def test_answers_that_are_no_file(tmp_path: Path, bad: Handler, says: str) -> None:
    async with file_net(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(DATA[:1000])
        source = await net.source("bad", bad)
        with pytest.raises(UnreachableError, match=says):
            await net.fetch(source)
        assert net.told_on == []
        assert (await net.fetch(source, await net.source("good", honest()))).read_bytes() == DATA
        assert start_of(net.asked[-1]) == 1000


async def test_a_full_disk_is_said_and_the_download_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async with file_net(tmp_path) as net:
        sources = await net.source("one", honest()), await net.source("two", honest())
        for _ in range(3):
            with (
                files_of_at_most(100_000),
                pytest.raises(StorageError, match=r"no room .* bytes are free"),
            ):
                await net.fetch(*sources)
            assert net.part() == DATA[:100_000]
        assert {name for name, _ in net.asked} == {"one"}
        assert (await net.fetch(*sources)).read_bytes() == DATA
        assert start_of(net.asked[-1]) == 100_000


async def test_a_disk_that_fills_in_the_end_leaves_nothing_half_admitted(tmp_path: Path) -> None:
    async with file_net(tmp_path) as net:
        await fills_up(net)
        assert net.cache.hashes() == ()
        assert (await net.fetch(await net.source("good", honest()))).read_bytes() == DATA


async def fills_up(net: FileNet) -> None:
    with files_of_at_most(len(DATA) - 1), pytest.raises(StorageError):
        await net.fetch(await net.source("good", honest()))


async def test_a_peer_with_wrong_bytes_is_reported_to_the_coordinator_and_asked_no_more(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, aiohttp.ClientSession(auto_decompress=False) as http:
        model = await add_model(coordinator)
        file = model.manifest.blocks[0]
        key = WorkerKey()
        async with served_by(tmp_path, coordinator, key, honest(b"x" * file.size_bytes)) as url:
            announce = announcement(url, files=(file.sha256,))
            async with joined_worker(coordinator, key=key, announce=announce) as bad:
                await bad.receive(Assign)
                sources = await joined_sources(tmp_path, coordinator, http)
                fetching = fetching_into(FileCache(tmp_path / "cache"), sources, http)
                assert [source.name for source in (await sources.of([file.sha256]))[file.sha256]] == [
                    bad.worker_id,
                    "the coordinator",
                ]
                await fetching.download(
                    [file], n_held=0, keep=(), progressed=lambda _text, _share: None, tell=lambda _text: None
                )
                (path,) = fetching.paths([file])
                assert path.read_bytes() == model.contents[file.sha256]
                audited = [(line.action, line.subject) for line in await coordinator.repository.audit_lines()]
                assert ("bad_source", bad.worker_id) in audited
                for asking in (sources, await joined_sources(tmp_path / "another", coordinator, http)):
                    found = await asking.of([file.sha256])
                    assert [source.name for source in found[file.sha256]] == ["the coordinator"]


@asynccontextmanager
async def served_by(
    folder: Path, coordinator: RunningCoordinator, key: WorkerKey, handler: Handler
) -> AsyncIterator[str]:
    """A file server with a worker's own certificate; yields its address."""
    grant = await enrolled(coordinator, key)
    certificate, key_path = folder / "bad.pem", folder / "bad.key"
    certificate.write_text(grant.certificate_pem)
    key_path.write_bytes(key.private_pem())
    app = web.Application()
    app.router.add_get("/v1/files/{sha256}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(certificate, key_path)).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """The system refuses this process longer files, as a full disk would: some bytes are taken, the rest fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
