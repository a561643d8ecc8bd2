from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from client.config import ClientConfig
from client.sync_api import SyncClient
from protocol.api_key import new_api_key
from protocol.errors import ConfigError, InvalidRequestError, NotFoundError, UnauthenticatedError
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of

DEADLINE_S = 30.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ScriptedCluster]:
    """A cluster on a loop in another thread, since these tests have none."""
    running: Future[tuple[ScriptedCluster, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        leaving = asyncio.Event()
        async with scripted_cluster(tmp_path) as cluster:
            cluster.script = Script(answer=tuple(ids_of(" Paris")), finish="length")
            running.set_result((cluster, asyncio.get_running_loop(), leaving))
            await leaving.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    found, loop, leaving = running.result(DEADLINE_S)
    yield found
    loop.call_soon_threadsafe(leaving.set)
    thread.join(DEADLINE_S)


def config_of(cluster: ScriptedCluster, tmp_path: Path) -> ClientConfig:
    return ClientConfig(url=cluster.url, api_key=cluster.api_key, cache=tmp_path / "cache")


def test_generates_and_lists_without_asyncio(cluster: ScriptedCluster, tmp_path: Path) -> None:
    with SyncClient(config=config_of(cluster, tmp_path)) as client:
        assert client.generate("tiny", "x", max_tokens=9).text == " Paris"
        with client.stream("tiny", "x") as stream:
            assert "".join(piece.text for piece in stream) == " Paris"
        assert stream.result.finish_reason == "length"
        assert [model.name for model in client.models()] == [client.model("tiny").name]


def test_leaving_early_cancels(cluster: ScriptedCluster, tmp_path: Path) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    with SyncClient(config=config_of(cluster, tmp_path)) as client:
        with client.stream("tiny", "x") as stream:
            assert next(stream).text == "a"
        assert stream.result.finish_reason == "cancelled"


def test_errors_are_raised_where_the_call_is(cluster: ScriptedCluster, tmp_path: Path) -> None:
    with SyncClient(config=config_of(cluster, tmp_path)) as client:
        with pytest.raises(NotFoundError):
            client.generate("other", "x")
        with pytest.raises(InvalidRequestError):
            client.stream("tiny", "x", max_tokens=0)
    with pytest.raises(ConfigError, match="not open"):
        client.models()


def test_a_client_that_cannot_be_opened_says_why(cluster: ScriptedCluster, tmp_path: Path) -> None:
    config = ClientConfig(url=cluster.url, api_key=new_api_key("client", "0" * 64), cache=tmp_path)
    with pytest.raises(UnauthenticatedError), SyncClient(config=config):
        pass
