"""What a client refuses, of callers, workers and coordinators, and which errors it hands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.api import Client
from client.config import ClientConfig
from protocol.api_key import new_api_key
from protocol.errors import (
    BrigadeError,
    ConfigError,
    ContextExceededError,
    ErrorBody,
    InternalError,
    InvalidRequestError,
    ModelUnavailableError,
    NotFoundError,
    ProtocolError,
    UnauthenticatedError,
    UntrustedFileError,
)
from protocol.frames import encode_frame
from protocol.messages import CloseSession
from tests.support.scripted_client import client, cluster, config_of, impatient
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of

__all__ = ["client", "cluster", "impatient"]


@pytest.mark.parametrize("where", ["head", "tail"])
async def test_what_all_workers_say_went_wrong_is_raised_as_it_is(
    impatient: None, client: Client, cluster: ScriptedCluster, where: str
) -> None:
    error = ErrorBody(code="overloaded", message="12 of 12 sessions", retry_after_s=2.0)
    cluster.script = Script(head_ends_with=error) if where == "head" else Script(ends_with=error)
    with pytest.raises(BrigadeError, match="12 of 12") as raised:
        await client.generate("tiny", "x")
    assert (raised.value.code, raised.value.retry_after_s) == ("overloaded", 2.0)


async def test_an_unknown_error_of_newer_workers_is_internal(
    impatient: None, client: Client, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(ends_with=ErrorBody(code="brand_new", message="something"))
    with pytest.raises(InternalError, match="something"):
        await client.generate("tiny", "x")


async def test_tokens_out_of_order_are_refused(impatient: None, client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), indexes=(1, 2, 3), stop_short=True)
    with pytest.raises(ProtocolError, match="comes next"):
        await client.generate("tiny", "x")
    await cluster.until_closed("failed")


async def test_a_token_that_the_model_does_not_have_is_refused(
    impatient: None, client: Client, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(answer=(100_000,), stop_short=True)
    with pytest.raises(ProtocolError, match="100000"):
        await client.generate("tiny", "x")


@pytest.mark.parametrize("raw", [b"nonsense", b"", encode_frame(CloseSession(session_id="s-1", reason="lost"))])  # type: ignore[arg-type]
async def test_nonsense_from_all_workers_is_a_protocol_error(
    impatient: None, client: Client, cluster: ScriptedCluster, raw: bytes
) -> None:
    cluster.script = Script(raw=raw, stop_short=True)
    with pytest.raises(ProtocolError):
        await client.generate("tiny", "x")


async def test_errors_of_the_coordinator_are_raised_as_they_are(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(route_error=ErrorBody(code="model_unavailable", message="blocks 3:5 are missing"))
    with pytest.raises(ModelUnavailableError, match="3:5"):
        await client.generate("tiny", "x")
    with pytest.raises(NotFoundError, match="tiny"):
        await client.generate("other", "x")


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ([], {}),
        ([-1], {}),
        ([270], {}),
        ([5, "x"], {}),
        ("\ud800", {}),
        ([{"content": "no role"}], {}),
        ("x", {"max_tokens": 0}),
        ("x", {"max_tokens": -3}),
        ("x", {"temperature": -0.1}),
        ("x", {"temperature": float("nan")}),
        ("x", {"top_p": 0.0}),
        ("x", {"top_p": 1.5}),
        ("x", {"min_p": -1}),
        ("x", {"top_k": -1}),
        ("x", {"repetition_penalty": 0.0}),
        ("x", {"seed": -1}),
        ("x", {"stop": [""]}),
        ("x", {"stop": "text"}),
        ("x", {"timeout_s": 0}),
        ("x", {"no_such_option": 1}),
    ],
)
async def test_bad_input_never_gets_to_a_worker(
    client: Client, cluster: ScriptedCluster, prompt: object, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequestError):
        await client.generate("tiny", prompt, **options)  # type: ignore[arg-type]
    assert cluster.route_requests == []


async def test_the_context_bounds_prompt_and_answer(tmp_path: Path) -> None:
    async with (
        scripted_cluster(tmp_path, context_length=10) as cluster,
        Client(config=config_of(cluster, tmp_path)) as client,
    ):
        with pytest.raises(ContextExceededError, match="10"):
            await client.generate("tiny", [5] * 10)
        with pytest.raises(ContextExceededError, match="room for 6"):
            await client.generate("tiny", [5] * 4, max_tokens=7)
        cluster.script = Script(answer=tuple(ids_of("a")), finish="length")
        await client.generate("tiny", [5] * 4)
        assert cluster.sampling.max_tokens == 6


async def test_a_key_of_another_cluster_is_refused(cluster: ScriptedCluster, tmp_path: Path) -> None:
    config = ClientConfig(url=cluster.url, api_key=new_api_key("client", "0" * 64), cache=tmp_path)
    with pytest.raises(UnauthenticatedError, match="another cluster"):
        async with Client(config=config):
            pass


async def test_workers_with_another_workers_name_are_refused(impatient: None, tmp_path: Path) -> None:
    name = f"w-{'a' * 26}.workers.brigade.internal"
    async with (
        scripted_cluster(tmp_path, worker_certificate_name=name) as cluster,
        Client(config=config_of(cluster, tmp_path)) as client,
    ):
        with pytest.raises(UnauthenticatedError, match="is not that of worker"):
            await client.generate("tiny", "x")
        assert cluster.latest.opening is None


async def test_an_altered_file_is_refused_and_not_kept(
    client: Client, cluster: ScriptedCluster, tmp_path: Path
) -> None:
    sha256 = next(sha for sha, data in cluster.contents.items() if b"im_start" in data and b"for message" in data)
    good = cluster.contents[sha256]
    cluster.contents[sha256] = good.replace(b"user", b"none") + b" "
    with pytest.raises(UntrustedFileError, match="chat_template"):
        await client.generate("tiny", "x")
    cluster.contents[sha256] = good
    assert (await client.generate("tiny", "x")).text == " Paris."


async def test_a_client_that_is_not_open_says_so(cluster: ScriptedCluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not open"):
        await Client(config=config_of(cluster, tmp_path)).models()
