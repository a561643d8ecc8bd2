from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from client.config import ClientConfig
from client.sync_api import SyncClient
from protocol.api_key import new_api_key
from protocol.errors import ConfigError, InvalidRequestError, NotFoundError, UnauthenticatedError
from protocol.rest import ModelInfo
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


def test_chats_and_counts_without_asyncio(cluster: ScriptedCluster, tmp_path: Path) -> None:
    hi = {"role": "user", "content": "hi"}
    with SyncClient(config=config_of(cluster, tmp_path)) as client:
        assert client.chat("tiny", [hi]).text == " Paris"
        assert client.count_tokens("tiny", "the") == len(client.encoded("tiny", "the")) == 2
        assert "tokenizer.json" in client.model_files("tiny").contents
        chat = client.chat_session("tiny", system="be brief")
        assert chat.say("hi").text == " Paris"
        with chat.stream("more") as pieces:
            assert next(pieces).text == " "
        assert [message["content"] for message in chat.messages] == ["be brief", "hi", " Paris", "more", " "]
        with pytest.raises(InvalidRequestError, match="a chat takes messages"):
            client.chat("tiny", "hi")  # type: ignore[arg-type]


def test_leaving_early_cancels(cluster: ScriptedCluster, tmp_path: Path) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    with SyncClient(config=config_of(cluster, tmp_path)) as client:
        with client.stream("tiny", "x") as stream:
            assert next(stream).text == "a"
        assert stream.result.finish_reason == "cancelled"


def test_ctrl_c_ends_what_runs_before_the_program_goes_on(cluster: ScriptedCluster, tmp_path: Path) -> None:
    async def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    cluster.script = Script(stop_short=True, on_answered=press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's process may leave it out
    try:
        with SyncClient(config=config_of(cluster, tmp_path)) as client:
            with pytest.raises(KeyboardInterrupt), client.stream("tiny", "x") as stream:
                next(stream)
            assert stream.result.finish_reason == "cancelled"
            cluster.script = Script(answer=tuple(ids_of("b")), finish="length")
            assert client.generate("tiny", "x").text == "b"
    finally:
        signal.signal(signal.SIGINT, before)
    first, _ = cluster.seen.values()
    assert set(first.closed.values()) == {"cancelled"}


def test_calls_that_could_never_be_answered_say_so(cluster: ScriptedCluster, tmp_path: Path) -> None:
    waits = threading.Event()

    async def note() -> None:
        waits.set()

    async def asks_itself() -> tuple[ModelInfo, ...]:
        return client.models()

    cluster.script = Script(stop_short=True, on_answered=note)
    with ThreadPoolExecutor(1) as others:
        with SyncClient(config=config_of(cluster, tmp_path)) as client:
            with pytest.raises(ConfigError, match="would wait for itself"):
                client.run(asks_itself())
            endless = others.submit(client.generate, "tiny", "x")
            assert waits.wait(DEADLINE_S)
        with pytest.raises(ConfigError, match="closed before this call had its answer"):
            endless.result(DEADLINE_S)
    with pytest.raises(ConfigError, match="opened before"), client:
        pass


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
