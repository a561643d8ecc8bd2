"""The requests by which a worker joins, over TLS with whoever answers.

Nothing that comes through that connection is believed until the coordinator's proof verifies; and that proof, like
the worker's, speaks for the certificate that was shown: it is learned from a first connection, and every request
goes only over connections that show the very same (whoever shows it has its private key, or fails the handshake).
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from protocol.codec import check_version, decode_json, encode_json
from protocol.compatibility import knows
from protocol.errors import (
    ClockSkewError,
    InvalidRequestError,
    ProtocolVersionError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
    WrongSecretError,
)
from protocol.handshake import (
    JOIN_PURPOSE,
    MAX_CLOCK_SKEW_S,
    NONCE_BYTES,
    PROOF_HEADER,
    Transcript,
    is_proof_valid,
    join_key,
    join_proof,
    key_challenge,
)
from protocol.http_answers import error_of, read_body
from protocol.http_connector import ClosingConnector, connecting_reason
from protocol.invites import Invite, check_pinned
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import Hello
from protocol.tls import fingerprint, first_contact_context
from protocol.worker_rest import Challenge, ChallengeRequest, JoinGrant, JoinRequest
from worker.identity import Identity

_NO_TIME_S = 0.0
"""1970: no coordinator takes it for the time."""

_Answer = TypeVar("_Answer", bound=msgspec.Struct)


async def join(url: str, identity: Identity, secret: str | Invite, clock: Callable[[], float]) -> JoinGrant:
    """Ask the coordinator at `url` to let this worker in; the answer is proven to be the coordinator's own.

    Raises:
        UnreachableError: nobody answers, or not as a Brigade coordinator.
        WrongSecretError: one side can't prove that it knows the secret, or isn't who the invite is from.
        ForbiddenError: the invite is genuine, and can't be used (any more).
        ProtocolVersionError: another version of the protocol.
        ClockSkewError: the clocks differ too much.
    """
    async with _begun(url) as exchange:
        hello = _decoded(await exchange.ask("GET", "/v1/hello"), Hello, url)
        check_version(hello.protocol_version)
        _check_clocks(hello.time_s, clock(), url)
        return await _prove(exchange, identity, secret, clock)


async def hello_of(url: str) -> Hello:
    """What whoever listens at `url` says of itself, unproven.

    Raises:
        UnreachableError: nobody answers, or not as a Brigade coordinator.
    """
    async with _begun(url) as exchange:
        return _decoded(await exchange.ask("GET", "/v1/hello"), Hello, url)


async def prove_secret(url: str, identity: Identity, secret: str | Invite) -> None:
    """Find out whether the coordinator takes the secret, without joining.

    The proof is over a request whose clock can't be right. A coordinator looks at the clock only after the proof
    has verified, and refuses: so a refused clock says that the secret is right, and nothing was granted.

    Raises:
        WrongSecretError: the secrets differ.
        BrigadeError: it can't be asked.
    """
    async with _begun(url) as exchange:
        with suppress(ClockSkewError):
            await _prove(exchange, identity, secret, lambda: _NO_TIME_S)


@asynccontextmanager
async def _begun(url: str) -> AsyncIterator[_Exchange]:
    certificate = await _shown_certificate(url)
    shown = fingerprint(certificate)
    # the request's context sets the TLS version, the connector's fingerprint is checked on each new connection
    connector = ClosingConnector(ssl=aiohttp.Fingerprint(shown), limit=1)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield _Exchange(
            session=session, url=url, context=first_contact_context(), certificate=certificate, shown=shown
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    body: bytes
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """Requests to one address, over connections that show one certificate."""

    session: aiohttp.ClientSession
    url: str
    context: ssl.SSLContext
    certificate: bytes
    """DER."""
    shown: bytes
    """The certificate's fingerprint."""

    async def ask(self, method: str, path: str, body: bytes | None = None, proof: str | None = None) -> _Reply:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if proof is not None:
            headers[PROOF_HEADER] = proof
        try:
            async with self.session.request(
                method, self.url + path, data=body, headers=headers, ssl=self.context, allow_redirects=False
            ) as response:
                answer = await read_body(response)
                if response.status != 200:
                    raise error_of(response, answer)
                return _Reply(body=answer, proof=response.headers.get(PROOF_HEADER, ""))
        except aiohttp.ServerFingerprintMismatch as exc:
            raise UnreachableError(
                f"{self.url} showed two different certificates while this worker joined: several programs answer "
                "there, or somebody is in between; try again"
            ) from exc
        except (aiohttp.ClientError, OSError, TooLargeError) as exc:
            reason = connecting_reason(exc)
            raise UnreachableError(f"{self.url} broke off while this worker joined: {reason}") from exc


async def _prove(
    exchange: _Exchange, identity: Identity, secret: str | Invite, clock: Callable[[], float]
) -> JoinGrant:
    """Steps 1 to 4 of joining, as docs/protocol.md numbers them."""
    key = secret.key if isinstance(secret, Invite) else await asyncio.to_thread(join_key, secret)
    nonce = secrets.token_hex(NONCE_BYTES)
    request = ChallengeRequest(protocol_version=PROTOCOL_VERSION, worker_id=identity.worker_id, client_nonce=nonce)
    reply = await exchange.ask("POST", "/v1/join/challenge", encode_json(request))
    challenge = _decoded(reply, Challenge, exchange.url)
    check_version(challenge.protocol_version)
    body = encode_json(_join_request(identity, nonce, challenge, clock(), secret, exchange.shown))

    def transcript(spoken_for: bytes) -> Transcript:
        return Transcript(
            version=PROTOCOL_VERSION,
            purpose=JOIN_PURPOSE,
            coordinator_id=challenge.coordinator_id,
            worker_id=identity.worker_id,
            client_nonce=nonce,
            server_nonce=challenge.server_nonce,
            tls_fingerprint=exchange.shown,
            body=spoken_for,
        )

    try:
        reply = await exchange.ask("POST", "/v1/join", body, join_proof(key, transcript(body), "worker"))
    except UnauthenticatedError as exc:
        raise _refused(exchange.url, secret) from exc
    if not is_proof_valid(key, transcript(reply.body), "coordinator", reply.proof):
        raise WrongSecretError(
            f"{exchange.url} can't prove that it knows the join secret (or the invite): somebody is in between, or "
            "answers in the coordinator's place; nothing was accepted from it"
        )
    grant = _decoded(reply, JoinGrant, exchange.url)
    if grant.coordinator_id != challenge.coordinator_id:
        raise WrongSecretError(f"{exchange.url} changed its coordinator id while this worker joined")
    if isinstance(secret, Invite):
        check_pinned(secret, grant.ca_pem, exchange.certificate, exchange.url)
    return grant


def _join_request(
    identity: Identity, nonce: str, challenge: Challenge, now_s: float, secret: str | Invite, shown: bytes
) -> JoinRequest:
    """What the proof is over.

    Raises:
        ProtocolVersionError: the coordinator is older than invites.
    """
    if isinstance(secret, Invite) and not knows(JoinRequest, "invite_id", challenge.protocol_version):
        raise ProtocolVersionError(
            f"the coordinator speaks protocol {challenge.protocol_version}, which has no invites: update it, or "
            "join with the join secret"
        )
    return JoinRequest(
        worker_id=identity.worker_id,
        client_nonce=nonce,
        server_nonce=challenge.server_nonce,
        certificate_request_pem=identity.certificate_request_pem(key_challenge(challenge.server_nonce, shown)),
        time_s=now_s,
        invite_id=secret.invite_id if isinstance(secret, Invite) else None,
    )


def _refused(url: str, secret: str | Invite) -> WrongSecretError:
    if isinstance(secret, Invite):
        return WrongSecretError(
            f"the coordinator at {url} refuses the invite {secret.invite_id}: it isn't this cluster's; ask its "
            "operator for another (`coord invite`; or somebody is in between and altered the request)"
        )
    return WrongSecretError(
        f"the coordinator at {url} refuses this worker's join secret: it isn't this cluster's, or not any more "
        "since it was rotated; use the one that `coord secret show --reveal` prints there (or somebody is in "
        "between and altered the request)"
    )


async def _shown_certificate(url: str) -> bytes:
    """Connect once, to learn which certificate (DER) is shown at `url`."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=first_contact_context())
    except ssl.SSLError as exc:
        raise UnreachableError(
            f"what listens at {url} doesn't speak TLS 1.3 ({exc.reason}), so it is no Brigade coordinator: check "
            "the address and port"
        ) from exc
    except ConnectionResetError as exc:  # how asyncio tells of a handshake that the other side broke off
        raise UnreachableError(
            f"what listens at {url} broke off the TLS 1.3 handshake: too many connections come from this address "
            "at once, or it is no Brigade coordinator: check the address and port"
        ) from exc
    except OSError as exc:
        raise UnreachableError(
            f"nobody answers at {url} ({exc.strerror or exc}): check the address, and that `coord serve` runs there"
        ) from exc
    try:
        return bytes(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.transport.abort()


def _decoded(reply: _Reply, kind: type[_Answer], url: str) -> _Answer:
    try:
        return decode_json(reply.body, kind)
    except InvalidRequestError as exc:
        raise UnreachableError(
            f"{url} doesn't answer as a Brigade coordinator of this version does: check the address and port"
        ) from exc


def _check_clocks(theirs_s: float, ours_s: float, url: str) -> None:
    if not abs(theirs_s - ours_s) <= MAX_CLOCK_SKEW_S:  # also if it is no number
        raise ClockSkewError(
            f"the clock of {url} says {_clock_text(theirs_s)}, this machine's {_clock_text(ours_s)}: they may "
            f"differ by {MAX_CLOCK_SKEW_S:.0f} s at most; set the one that is wrong"
        )


def _clock_text(time_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time_s} s"
