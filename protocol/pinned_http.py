"""Requests to a coordinator by whoever holds an API key: TLS pinned to the CA that the key names.

The CA is fetched without verification, compared with the key's fingerprint, and everything after that (the key
itself first of all) goes only to a server that holds a certificate of that CA for the coordinator's name. A
coordinator may have several addresses: they are tried in their order, the one that answered last first.
"""

from __future__ import annotations

import hmac
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import aiohttp
import msgspec
from yarl import URL

from protocol.api_key import ApiKey
from protocol.codec import check_version, decode_json, encode_json
from protocol.compatibility import VERSION_HEADER, understood_by
from protocol.errors import (
    BrigadeError,
    ConfigError,
    InternalError,
    InvalidRequestError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.http_answers import error_of, read_body
from protocol.manifest import MAX_AUXILIARY_FILE_BYTES
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import Hello
from protocol.tls import COORDINATOR_NAME, client_context, fingerprint, first_contact_context

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 16 * 2**20
"""Largest JSON answer that is read: the status of a thousand workers is under 1 MB."""
MAX_CA_BYTES = 16 * 2**10

T = TypeVar("T")


def checked_coordinator_url(text: str) -> str:
    """The coordinator's address as `https://host:port`, without a trailing slash.

    Raises:
        ConfigError: not such an address, or plain HTTP (a key must never travel unencrypted).
    """
    text = text.strip()
    try:
        url = URL(text if "://" in text else f"https://{text}")
        host, port = url.host, url.explicit_port
        plain = URL.build(scheme="https", host=host or "", port=port)
    except ValueError as exc:
        raise ConfigError(f"{text[:200]!r} is not an address; write https://host:port") from exc
    if url.scheme == "http":
        raise ConfigError(f"{text[:200]!r} is plain HTTP; a coordinator speaks TLS only: write https://host:port")
    if url.scheme != "https" or not host or url.user or url.path.strip("/") or url.query_string:
        raise ConfigError(f"{text[:200]!r} is not a coordinator's address; write https://host:port")
    return str(plain).rstrip("/")


def checked_coordinator_urls(text: str) -> tuple[str, ...]:
    """The addresses in a list that is separated by commas, each once.

    Raises:
        ConfigError: one of them is no address, or there is none.
    """
    parts = [part for part in text.split(",") if part.strip()] or [""]
    return tuple(dict.fromkeys(checked_coordinator_url(part) for part in parts))


class CoordinatorSession:
    """Requests to one coordinator, verified and with the key. Made by `pinned_session`.

    A request that nobody answers goes to the coordinator's next address, so it may be carried out twice where an
    answer was lost.

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
        data = await self._answer("GET", path, None, MAX_ANSWER_BYTES, timeout_s)
        return self._decoded(path, data, kind)

    async def post(
        self, path: str, body: msgspec.Struct | None, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> T:
        """`POST path` with `body` (less what is too new for the coordinator) or none; the answer as a `kind`."""
        version = self._version or await self.greet()
        encoded = b"" if body is None else encode_json(understood_by(body, version))
        data = await self._answer("POST", path, encoded, MAX_ANSWER_BYTES, timeout_s)
        return self._decoded(path, data, kind)

    async def patch(
        self, path: str, body: msgspec.Struct, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> T:
        """`PATCH path` with `body`; the answer as a `kind`."""
        data = await self._answer("PATCH", path, encode_json(body), MAX_ANSWER_BYTES, timeout_s)
        return self._decoded(path, data, kind)

    async def delete(self, path: str, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """`DELETE path`; the answer as a `kind`."""
        data = await self._answer("DELETE", path, None, MAX_ANSWER_BYTES, timeout_s)
        return self._decoded(path, data, kind)

    async def get_bytes(
        self, path: str, *, max_bytes: int = MAX_AUXILIARY_FILE_BYTES, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> bytes:
        """`GET path`; the answer as it is. TooLargeError if it has more than `max_bytes`."""
        return await self._answer("GET", path, None, max_bytes, timeout_s)

    async def greet(self) -> str:
        """Ask for the coordinator's protocol version. ProtocolVersionError if it is of another major."""
        hello = await self.get("/v1/hello", Hello)
        check_version(hello.protocol_version)
        self._version = hello.protocol_version
        return hello.protocol_version

    async def _answer(self, method: str, path: str, body: bytes | None, max_bytes: int, timeout_s: float) -> bytes:
        try:
            return await _first_answer(
                self._urls, lambda url: self._answer_of(url, method, path, body, max_bytes, timeout_s)
            )
        except UnreachableError:
            self._version = None
            raise

    async def _answer_of(
        self, url: str, method: str, path: str, body: bytes | None, max_bytes: int, timeout_s: float
    ) -> bytes:
        headers = {} if not body else {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S)
        with _connection_errors(url):
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
                return data

    def _decoded(self, path: str, data: bytes, kind: type[T]) -> T:
        try:
            return decode_json(data, kind, max_bytes=MAX_ANSWER_BYTES)
        except InvalidRequestError as exc:
            raise InternalError(
                f"{self.url}{path} answered something that this version can't read ({exc}): install the same "
                "version of Brigade on both sides"
            ) from exc


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
    ca_pem = await _first_answer(urls, lambda one: _pinned_ca(one, key.ca_fingerprint))
    connector = aiohttp.TCPConnector(ssl=client_context(ca_pem), limit=16)
    headers = {"Authorization": f"Bearer {key.text()}", VERSION_HEADER: PROTOCOL_VERSION}
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
    ) as http:
        session = CoordinatorSession(http, urls, ca_pem)
        await session.greet()
        yield session


async def _first_answer(urls: deque[str], ask: Callable[[str], Awaitable[T]]) -> T:
    """What the first address says that answers at all; it then stands first in `urls`."""
    failures: list[UnreachableError] = []
    for url in tuple(urls):
        try:
            answer = await ask(url)
        except UnreachableError as exc:
            failures.append(exc)
        except BrigadeError:
            _put_first(urls, url)
            raise
        else:
            _put_first(urls, url)
            return answer
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(failure.message for failure in failures)
    raise UnreachableError(f"none of the coordinator's {len(failures)} addresses answers: {reasons}")


def _put_first(urls: deque[str], url: str) -> None:
    urls.rotate(-urls.index(url))


async def _pinned_ca(url: str, ca_fingerprint: str) -> str:
    """Fetch the CA that `url` shows and compare it with the pinned fingerprint."""
    connector = aiohttp.TCPConnector(ssl=first_contact_context())
    timeout = aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S)
    with _connection_errors(url):
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            http.get(f"{url}/v1/ca", allow_redirects=False) as response,
        ):
            data = await read_body(response, MAX_CA_BYTES)
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


@contextmanager
def _connection_errors(url: str) -> Iterator[None]:
    """Turn what aiohttp raises into our errors."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        raise UnauthenticatedError(
            f"the certificate that {url} shows is not the one of this cluster's coordinator "
            f"({exc.certificate_error}): somebody may be in between"
        ) from exc
    except aiohttp.ClientSSLError as exc:
        raise UnreachableError(
            f"{url} answers, but not with TLS 1.3 as a Brigade coordinator does: check the address and port"
        ) from exc
    except TimeoutError as exc:
        raise UnreachableError(
            f"the coordinator at {url} didn't answer in time: check the address, the network and the firewall"
        ) from exc
    except (aiohttp.ClientError, OSError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise UnreachableError(
            f"no coordinator answers at {url} ({reason}): check that `coord serve` runs there and that the "
            "address and the port are right"
        ) from exc
