"""Telling a coordinator that let a worker in that it doesn't come after all: else it is awaited for two minutes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import aiohttp
import structlog

from protocol.codec import encode_json
from protocol.errors import BrigadeError
from protocol.http_connector import ClosingConnector
from protocol.tls import COORDINATOR_NAME, client_context
from protocol.worker_rest import MAX_REASON_CHARS, NotComing
from worker.enrolment import Credentials
from worker.error_groups import most_telling

log = structlog.get_logger(__name__)

_AT_MOST_S = 2.0
"""Whoever ends a worker waits for this."""


async def said_if_failed(
    credentials: Credentials,
    _kind: type[BaseException] | None,
    error: BaseException | None,
    _traceback: TracebackType | None,
) -> None:
    """As the end of a context in which the worker is to connect: say so if that ends with an error."""
    if error is not None:
        await say_not_coming(credentials, error)


async def granted(ask: Callable[[], Coroutine[Any, Any, Credentials]]) -> Credentials:
    """What `ask` is granted; cut short, it is told to the coordinator, which may have let this worker in already.

    For that the answer is waited for, a moment at most: without it nobody could say who doesn't come.
    """
    asking = asyncio.ensure_future(ask())  # noqa: TID251 - awaited right here, whatever happens
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError as exc:
        try:
            await asyncio.wait([asking], timeout=_AT_MOST_S)
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                await say_not_coming(asking.result(), exc)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)  # what it still says is of no use to anybody
        raise


async def say_not_coming(credentials: Credentials | None, error: BaseException) -> None:
    """Say that the worker ends, and why. Of one that has connected since, the coordinator takes no notice of this.

    Nothing is said without credentials, nor to a coordinator that doesn't answer, or is older than this message.
    """
    if credentials is None:
        return
    try:
        async with asyncio.timeout(_AT_MOST_S):
            status = await _posted(credentials, encode_json(NotComing(reason=_reason(error)[:MAX_REASON_CHARS])))
    except (TimeoutError, aiohttp.ClientError, OSError) as exc:
        log.debug("not_coming_unsaid", error=type(exc).__name__)
    else:
        log.debug("not_coming_said", status=status)


async def _posted(credentials: Credentials, body: bytes) -> int:
    context = await asyncio.to_thread(client_context, credentials.ca_pem)
    async with (
        aiohttp.ClientSession(connector=ClosingConnector(ssl=context, limit=1)) as session,
        session.post(
            f"{credentials.coordinator_url}/v1/worker/not-coming",
            data=body,
            headers={"Authorization": f"Bearer {credentials.session_token}", "Content-Type": "application/json"},
            server_hostname=COORDINATOR_NAME,
            allow_redirects=False,
        ) as response,
    ):
        return response.status


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        error = most_telling(error)
    match error:
        case BrigadeError():
            return f"its start failed: {error.message}"
        case asyncio.CancelledError() | KeyboardInterrupt():
            return "it was stopped before it had joined"
        case _:
            return f"its start failed: {type(error).__name__}"
