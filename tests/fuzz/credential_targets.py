"""What proves who somebody is: tokens, keys, join proofs, certificate requests, signatures, cursors."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.test_utils import make_mocked_request
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.authority import Authority
from coordinator.etags import _check_match as check_match
from coordinator.keys import AUTHORITY
from coordinator.paging import cursor_after, read_cursor
from coordinator.state_folder import StateFolder
from protocol.admin_rest import PageQuery
from protocol.api_key import api_key_from_text, new_api_key
from protocol.author_keys import author_key_from_text, author_key_of, public_key
from protocol.errors import (
    ConfigError,
    InvalidRequestError,
    PreconditionFailedError,
    UnauthenticatedError,
    UntrustedFileError,
    WrongSecretError,
)
from protocol.handshake import Transcript, checked_secret, is_proof_valid, join_key
from protocol.ids import CoordinatorId, Revision, WorkerId
from protocol.model_signature import sign, verified_signature
from protocol.private_keys import new_key, public_key_der
from protocol.tickets import AttachTicket, SessionToken, Ticket, sign_claims, verified_claims
from protocol.tls import worker_id_of_key
from tests.fuzz.target import Target
from tests.protocol.samples import CLAIMS

KEYS = (b"k" * 32,)
REVISION = Revision("ab" * 32)
PROOF_KEY = join_key("a secret that only the two sides know, of course")
NOW_S = 1.8e9
NOW = datetime.fromtimestamp(NOW_S, UTC)


def tokens(data: bytes) -> None:
    """A token as it came; and the same bytes under a right signature, of which nothing else may be believed."""
    for kind in (SessionToken, Ticket, AttachTicket):
        for token in (data.decode("latin-1"), data.decode("utf-8", "surrogateescape")):
            with contextlib.suppress(UnauthenticatedError):
                claims = verified_claims(token, kind, KEYS, NOW_S)
                assert claims.expires_at_s > NOW_S


def api_keys(data: bytes) -> None:
    """An API key: one that is taken is written as it was read."""
    text = data.decode("utf-8", "replace")
    assert api_key_from_text(text).text() == text.strip()


def proofs(data: bytes) -> None:
    """A join proof over fields that are anybody's: none is valid, and no field can be moved into another."""
    one, other, proof = [*data.split(b"\n", 2), b"", b""][:3]
    words = [part.decode("utf-8", "replace") for part in (one, other)]
    pair = [_transcript(words[0], words[1]), _transcript(words[0] + words[1][:1], words[1][1:])]
    assert words[1][:1] == "" or pair[0].fields("worker") != pair[1].fields("worker")
    assert not is_proof_valid(PROOF_KEY, pair[0], "worker", proof.decode("utf-8", "surrogateescape"))
    checked_secret(words[0])


def _transcript(one: str, other: str) -> Transcript:
    return Transcript(
        version=one,
        purpose=other,
        coordinator_id=CoordinatorId(one),
        worker_id=WorkerId(other),
        client_nonce=one,
        server_nonce=other,
        tls_fingerprint=other.encode(),
        body=one.encode(),
    )


@cache
def _authority() -> Authority:
    folder = Path(tempfile.mkdtemp(prefix="brigade-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Authority(StateFolder(folder / "state"), now=NOW)


@cache
def _worker_key() -> ec.EllipticCurvePrivateKey:
    return new_key()


def certificate_requests(data: bytes) -> None:
    """What a worker asks a certificate with."""
    worker_id = worker_id_of_key(public_key_der(_worker_key().public_key()))
    _authority().issue_worker_certificate(data.decode("utf-8", "replace"), worker_id, NOW)


def _request_seeds() -> list[bytes]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "w-x")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_worker_key(), hashes.SHA256())
    return [request.public_bytes(Encoding.PEM)]


def _request(cursor: str, etag: str) -> tuple[web.Request, PageQuery]:
    app = web.Application()
    app[AUTHORITY] = _authority()
    request = make_mocked_request("GET", "/admin/v1/keys", headers={hdrs.IF_MATCH: etag}, app=app)
    return request, PageQuery(cursor=cursor)


def cursors_and_etags(data: bytes) -> None:
    """A page's cursor and, in the line after it, an If-Match header."""
    cursor, _, etag = data.decode("latin-1").partition("\n")
    request, query = _request(cursor, etag)
    with contextlib.suppress(InvalidRequestError):
        read_cursor(request, query)
    with contextlib.suppress(PreconditionFailedError):
        check_match(request, "0123456789abcdef")


def _cursor_seeds() -> list[bytes]:
    request, query = _request("", "")
    cursor = cursor_after(request, query, ("key", 1))
    return [cursor.encode() + b'\n"0123456789abcdef-0"', b'\nW/"a", *', b"x\n*"]


@cache
def _author() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def signatures(data: bytes) -> None:
    """A model's signature: what is taken says the model's revision, and names the key that made it."""
    statement = verified_signature(data, REVISION).statement
    assert (statement.revision, statement.key) == (REVISION, author_key_of(_author()))


def author_keys(data: bytes) -> None:
    """An author's public key as people write it: one that is taken has this spelling only."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        assert author_key_from_text(text) == text
        public_key(author_key_from_text(text))


def _signature_seeds() -> list[bytes]:
    return [sign(REVISION, _author(), model="m", version="1", signer="who", at=NOW)]


CREDENTIAL_TARGETS = (
    Target(name="tokens", run=tokens, seeds=lambda: [sign_claims(each, KEYS).encode() for each in CLAIMS.values()]),
    Target(
        name="api-keys",
        run=api_keys,
        seeds=lambda: [new_api_key("client", "ab" * 32).text().encode()],
        allowed=(UnauthenticatedError,),
    ),
    Target(name="proofs", run=proofs, seeds=lambda: [b"1.2\nw-1\n" + b"ab" * 32], allowed=(ConfigError,)),
    Target(
        name="certificate-requests",
        run=certificate_requests,
        seeds=_request_seeds,
        allowed=(WrongSecretError,),
    ),
    Target(name="cursors-and-etags", run=cursors_and_etags, seeds=_cursor_seeds, allowed=(InvalidRequestError,)),
    Target(name="signatures", run=signatures, seeds=_signature_seeds, allowed=(UntrustedFileError,)),
    Target(name="author-keys", run=author_keys, seeds=lambda: [author_key_of(_author()).encode()]),
)
