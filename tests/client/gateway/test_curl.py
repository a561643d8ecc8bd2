"""curl against the gateway, as people type it."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import Any

import pytest

from tests.support.coordinators import key_of
from tests.support.gateways import ENDS, ServedGateway
from tests.support.waiting import eventually

CURL = shutil.which("curl")
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
    pytest.mark.skipif(CURL is None, reason="there is no curl on the PATH: install the package `curl`"),
]

PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 6,
    "temperature": 0,
}
WITHIN_S = 30.0
HTTP_ERROR = 22
"""curl's exit code with --fail-with-body."""


async def started(served: ServedGateway, body: bytes, *options: str) -> asyncio.subprocess.Process:
    """curl, which reads the body from its standard input."""
    assert CURL is not None
    process = await asyncio.create_subprocess_exec(
        CURL,
        *("--silent", "--show-error", "--fail-with-body", "--write-out", "\n%{http_code}", *options),
        *("--header", "Content-Type: application/json", "--data-binary", "@-"),
        served.gateway.url + PATH,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(body)
    process.stdin.close()
    return process


async def curled(served: ServedGateway, asked: dict[str, Any] | bytes, *options: str) -> tuple[int, int, bytes]:
    """Its exit code, the status, and the body that it printed."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    process = await started(served, body, *options)
    async with asyncio.timeout(WITHIN_S):
        out, errors = await process.communicate()
    assert process.returncode in (0, HTTP_ERROR), errors.decode()
    answer, _, status = out.rpartition(b"\n")
    return process.returncode, int(status), answer


@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
async def test_an_answer_whole_and_streamed_is_the_same(served: ServedGateway, version: str) -> None:
    code, status, whole = await curled(served, ASKED, version)
    assert (code, status) == (0, 200)
    code, status, streamed = await curled(served, ASKED | {"stream": True}, version, "--no-buffer")
    assert (code, status) == (0, 200)
    events = [line.removeprefix(b"data: ") for line in streamed.splitlines() if line.startswith(b"data: ")]
    assert events.pop() == b"[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    assert text == json.loads(whole)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("asked", "options", "status", "words"),
    [
        (ASKED | {"model": "nosuch"}, (), 404, "there are: tiny"),
        (ASKED | {"colour": "red", "stream": True}, ("--no-buffer",), 400, "colour"),
        (b"{", (), 400, "in the middle of its JSON, after 1 bytes"),
        (ASKED, ("--oauth2-bearer", "sk-0"), 401, "none of this cluster"),
    ],
)
async def test_errors_have_their_status_and_say_why(
    served: ServedGateway, asked: dict[str, Any] | bytes, options: tuple[str, ...], status: int, words: str
) -> None:
    code, answered, body = await curled(served, asked, *options)
    assert (code, answered) == (HTTP_ERROR, status)
    assert words in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("n_bytes", "status", "error"), [(10**7, 400, "context_length_exceeded"), (17 * 10**6, 413, "too_large")]
)
async def test_large_bodies_are_refused_once_announced(
    served: ServedGateway, n_bytes: int, status: int, error: str
) -> None:
    """Before more than a megabyte, curl asks whether to go on (`Expect: 100-continue`)."""
    asked = ASKED | {"messages": [{"role": "user", "content": "a" * n_bytes}]}
    code, answered, body = await curled(served, asked, "--header", "Expect: 100-continue")
    assert (code, answered, json.loads(body)["error"]["code"]) == (HTTP_ERROR, status, error)
    assert served.sessions_on_workers() == 0


async def test_a_key_is_passed_on(served: ServedGateway) -> None:
    key = key_of(served.cluster.coordinator, "client")
    code, status, _ = await curled(served, ASKED, "--oauth2-bearer", key)  # `Authorization: Bearer`
    assert (code, status) == (0, 200)


async def test_a_curl_that_is_stopped_leaves_nothing_running(served: ServedGateway) -> None:
    asked = ASKED | {"max_tokens": 400, "logit_bias": ENDS, "stream": True}
    process = await started(served, json.dumps(asked).encode(), "--no-buffer")
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN_S):
        await process.stdout.readline()
        assert served.sessions_on_workers() > 0
        process.terminate()
        await process.communicate()
    await eventually(lambda: served.sessions_on_workers() == 0 and served.gateway.gate.n_inside == 0)
