"""Requests to a coordinator by whoever holds an API key: TLS pinned to the CA that the key names.

The CA is fetched without verification, compared with the key's fingerprint, and everything after that (the key
itself first of all) goes only to a server that holds a certificate of that CA for the coordinator's name. A
coordinator may have several addresses: they are tried in their order, the one that answered last first.
"""

from __future__ import annotations

import hmac
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TypeVar

import aiohttp
import msgspec

from protocol.api_key import ApiKey
from protocol.codec import check_version, decode_json, encode_json
from protocol.compatibility import VERSION_HEADER, knows, understood_by
from protocol.coordinator_urls import checked_coordinator_urls, first_answer
from protocol.errors import (
    ConfigError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    ProtocolVersionError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.http_answers import connection_errors, error_of, read_body
from protocol.http_connector import CLOSED, ClosingConnector
from protocol.manifest import MAX_AUXILIARY_FILE_BYTES
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import Hello
from protocol.tls import COORDINATOR_NAME, client_context, fingerprint, first_contact_context
from protocol.tracing import TRACEPARENT, Trace

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 16 * 2**20
"""Largest JSON answer that is read: the status of a thousand workers is under 1 MB."""
IDEMPOTENCY_KEY = "Idempotency-Key"
IF_MATCH = "If-Match"
MAX_CA_BYTES = 16 * 2**10

T = TypeVar("T")


class CoordinatorSession:
    """Requests to one coordinator, verified and with the key. Made by `pinned_session`.

    A request that nobody answers goes to the coordinator's next address, so it may come twice where an answer was
    lost; an operator's is carried out once all the same (Idempotency-Key).

    Every method raises the coordinator's own error as the class of `protocol/errors.py` that it is, and
    `UnreachableError` where nobody or something else answers.
    """

    def __init__(self, http: aiohttp.ClientSession, urls: Sequence[str], ca_pem: str) -> None:
        self._http = http
        self._urls = deque(urls)
        self.ca_pem = ca_pem
        """The cluster's CA, verified by the key: good for dialling workers."""
        self._version: str | None = None
        """What the coordinator speaks; None when it has been away, since another version may come back."""

    @property
    def url(self) -> str:
        """The address that answered last, or the first: `https://host:port`, without a trailing slash."""
        return self._urls[0]

    async def get(self, path: str, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """`GET path`; the answer as a `kind`."""
        found, _ = await self.get_tagged(path, kind, timeout_s=timeout_s)
        return found

    async def get_tagged(
        self, path: str, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> tuple[T, str | None]:
        """The same, and its ETag, if it has one: for `if_match` of a change that depends on what was read."""
        data, etag = await self._answer("GET", path, None, MAX_ANSWER_BYTES, timeout_s)
        return self._decoded(path, data, kind), etag

    async def post(
        self,
        path: str,
        body: msgspec.Struct | None,
        kind: type[T],
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        needed: Collection[str] = (),
        trace: Trace | None = None,
    ) -> T:
        """`POST path` with `body` (less what is too new for the coordinator) or none; the answer as a `kind`.

        `needed`: fields of the body without which the answer would be worth nothing. ProtocolVersionError if the
        coordinator is too old for one. `trace`: what the request is part of.
        """
        version = self._version or await self.greet()
        lacking = [] if body is None else [name for name in needed if not knows(type(body), name, version)]
        if lacking:
            raise ProtocolVersionError(
                f"the coordinator speaks protocol {version}, which knows nothing of {', '.join(lacking)}, so it "
                "would go on without; update it, or ask for less"
            )
        encoded = b"" if body is None else encode_json(understood_by(body, version))
        headers = {IDEMPOTENCY_KEY: secrets.token_hex(16)} if path.startswith("/admin/") else {}
        if trace is not None:
            headers[TRACEPARENT] = trace.traceparent()
        data, _ = await self._answer("POST", path, encoded, MAX_ANSWER_BYTES, timeout_s, headers)
        return self._decoded(path, data, kind)

    async def patch(
        self,
        path: str,
        body: msgspec.Struct,
        kind: type[T],
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        if_match: str | None = None,
    ) -> T:
        """`PATCH path` with `body`; the answer as a `kind`.

        `if_match`: the ETag of the state that is to be changed; PreconditionFailedError if it is in another by now.
        """
        headers = _matching(if_match)
        data, _ = await self._answer("PATCH", path, encode_json(body), MAX_ANSWER_BYTES, timeout_s, headers)
        return self._decoded(path, data, kind)

    async def put(
        self,
        path: str,
        body: msgspec.Struct,
        kind: type[T],
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        if_match: str | None = None,
    ) -> T:
        """`PUT path` with `body`; the answer as a `kind`. `if_match` as in `patch`."""
        headers = _matching(if_match)
        data, _ = await self._answer("PUT", path, encode_json(body), MAX_ANSWER_BYTES, timeout_s, headers)
        return self._decoded(path, data, kind)

    async def delete(
        self, path: str, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S, if_match: str | None = None
    ) -> T:
        """`DELETE path`; the answer as a `kind`. `if_match` as in `patch`."""
        data, _ = await self._answer("DELETE", path, None, MAX_ANSWER_BYTES, timeout_s, _matching(if_match))
        return self._decoded(path, data, kind)

    async def get_bytes(
        self, path: str, *, max_bytes: int = MAX_AUXILIARY_FILE_BYTES, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> bytes:
        """`GET path`; the answer as it is. TooLargeError if it has more than `max_bytes`."""
        data, _ = await self._answer("GET", path, None, max_bytes, timeout_s)
        return data

    async def greet(self) -> str:
        """Ask for the coordinator's protocol version. ProtocolVersionError if it is of another major."""
        hello = await self.get("/v1/hello", Hello)
        check_version(hello.protocol_version)
        self._version = hello.protocol_version
        return hello.protocol_version

    async def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None,
        max_bytes: int,
        timeout_s: float,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[bytes, str | None]:
        """The answer's body and its ETag."""
        if body:
            headers = {**headers, "Content-Type": "application/json"}
        try:
            return await first_answer(
                self._urls, lambda url: self._answer_of(url, method, path, body, headers, max_bytes, timeout_s)
            )
        except UnreachableError:
            self._version = None
            raise

    async def _answer_of(
        self,
        url: str,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        max_bytes: int,
        timeout_s: float,
    ) -> tuple[bytes, str | None]:
        if self._http.closed:
            raise ConfigError(CLOSED)
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S)
        with connection_errors(url):
            async with self._http.request(
                method,
                url + path,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                server_hostname=COORDINATOR_NAME,  # whatever its address
            ) as response:
                data = await read_body(response, max_bytes)
                if response.status >= 300:
                    raise error_of(response, data)
                return data, response.headers.get("ETag")

    def _decoded(self, path: str, data: bytes, kind: type[T]) -> T:
        try:
            return decode_json(data, kind, max_bytes=MAX_ANSWER_BYTES)
        except InvalidRequestError as exc:
            raise InternalError(
                f"{self.url}{path} answered something that this version can't read ({exc}): install the same "
                "version of Brigade on both sides"
            ) from exc


def _matching(if_match: str | None) -> dict[str, str]:
    return {} if if_match is None else {IF_MATCH: if_match}


@asynccontextmanager
async def pinned_session(url: str, key: ApiKey) -> AsyncIterator[CoordinatorSession]:
    """Requests to the coordinator at `url` with `key`; connections are kept until the context ends.

    `url` may be several, separated by commas: all of one cluster.

    Raises:
        ConfigError: `url` is not a coordinator's address.
        UnreachableError: nobody answers there, or not as a coordinator does.
        UnauthenticatedError: the coordinator is of another cluster than the key.
        ProtocolVersionError: it speaks another version.
    """
    urls = deque(checked_coordinator_urls(url))
    ca_pem = await first_answer(urls, lambda one: _pinned_ca(one, key.ca_fingerprint))
    connector = ClosingConnector(ssl=client_context(ca_pem), limit=16)
    headers = {"Authorization": f"Bearer {key.text()}", VERSION_HEADER: PROTOCOL_VERSION}
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
    ) as http:
        session = CoordinatorSession(http, urls, ca_pem)
        await session.greet()
        yield session


async def _pinned_ca(url: str, ca_fingerprint: str) -> str:
    """Fetch the CA that `url` shows and compare it with the pinned fingerprint."""
    connector = ClosingConnector(ssl=first_contact_context())
    timeout = aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S)
    with connection_errors(url):
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            http.get(f"{url}/v1/ca", allow_redirects=False) as response,
        ):
            data = await read_body(response, MAX_CA_BYTES)
    if response.status == OverloadedError.status:  # a coordinator that takes no more connections of this address
        raise error_of(response, data)
    try:
        certificate = ssl.PEM_cert_to_DER_cert(data.decode("ascii").strip())
    except ValueError as exc:
        raise UnreachableError(
            f"{url} answers, but not as a Brigade coordinator does (HTTP status {response.status}): check the "
            "address and the port"
        ) from exc
    if not hmac.compare_digest(fingerprint(certificate).hex(), ca_fingerprint):
        raise UnauthenticatedError(
            f"the coordinator at {url} is of another cluster than the API key (it shows another CA), or somebody "
            "is in between: use a key that was made on that coordinator"
        )
    # Encoded anew from the bytes that were compared, so that nothing beside them is trusted.
    return ssl.DER_cert_to_PEM_cert(certificate)
