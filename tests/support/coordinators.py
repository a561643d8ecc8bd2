"""A real coordinator on a free port, and workers that join it for real and then do as a test says.

async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
    await worker.hold(await worker.receive(Assign))
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from coordinator.app import RunningCoordinator, running, utc_now_s
from coordinator.config import CoordinatorConfig
from coordinator.file_store import FileStore
from coordinator.state_folder import StateFolder
from protocol.cluster_rest import AddModelRequest
from protocol.codec import decode_json, decode_message, encode_json, encode_message
from protocol.compatibility import VERSION_HEADER
from protocol.control_messages import (
    Announce,
    Assign,
    CoordinatorToWorker,
    DeviceReport,
    Heartbeat,
    SpanReport,
    SpanStatus,
)
from protocol.handshake import JOIN_PURPOSE, NONCE_BYTES, PROOF_HEADER, Transcript, join_key, join_proof
from protocol.ids import ModelName, Revision, WorkerId
from protocol.manifest import FORMAT_VERSION, Manifest, ModelFile, encode_manifest, revision_of
from protocol.messages import PROTOCOL_VERSION
from protocol.private_keys import key_to_pem, new_key, public_key_der
from protocol.running_beside import running_beside
from protocol.tls import COORDINATOR_NAME, client_context, fingerprint, first_contact_context, worker_id_of_key
from protocol.worker_rest import Challenge, ChallengeRequest, JoinGrant, JoinRequest
from tests.support.migrated_once import put_migrated_database

DEADLINE_S = 30.0
PATIENT = {"suspect_after_s": 600.0, "lost_after_s": 1200.0}
"""A worker that says something only when its test has it do so isn't silent because the machine is busy."""
M = TypeVar("M")


@asynccontextmanager
async def running_coordinator(
    tmp_path: Path, *, clock: Callable[[], float] = utc_now_s, is_patient: bool = True, **config: Any
) -> AsyncIterator[RunningCoordinator]:
    """A coordinator with its state in `tmp_path`/state; `config` overrides settings.

    A state folder that isn't there is made with a database that has the newest schema already.
    `is_patient`: workers may be silent for minutes. Otherwise for as long as the programs let them.
    """
    settings = {"state": tmp_path / "state", "listen_port": 0, "settle_s": 0.0} | (PATIENT if is_patient else {})
    if not config.keys() & {"state", "database_url"}:
        await asyncio.to_thread(put_migrated_database, tmp_path / "state")
    async with running(CoordinatorConfig(**settings | config), clock=clock) as coordinator:
        yield coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachedCoordinator:
    """A coordinator in another process on this machine, as far as it is to be reached."""

    port: int
    ca_pem: str
    state_folder: StateFolder


def key_of(coordinator: RunningCoordinator | ReachedCoordinator, kind: str) -> str:
    """The first key of a kind, `admin` or `client`."""
    text = coordinator.state_folder.read(f"{kind}.key")
    assert text is not None
    return text


def join_secret_of(coordinator: RunningCoordinator | ReachedCoordinator) -> str:
    """What workers join with."""
    text = coordinator.state_folder.read("join-secret")
    assert text is not None
    return text


def bearer(token: str) -> dict[str, str]:
    """The header that shows a credential."""
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def http_session(
    coordinator: RunningCoordinator | ReachedCoordinator, token: str | None = None
) -> AsyncIterator[Http]:
    """Verified requests to the coordinator, with a credential if one is given."""
    is_ours = isinstance(coordinator, RunningCoordinator)
    connector = aiohttp.TCPConnector(
        ssl=client_context(coordinator.authority.ca_pem if is_ours else coordinator.ca_pem)
    )
    headers = {VERSION_HEADER: PROTOCOL_VERSION} | (bearer(token) if token is not None else {})
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield Http(session=session, url=f"https://127.0.0.1:{coordinator.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes

    def read(self, kind: type[M]) -> M:
        """The body as a `kind`."""
        return decode_json(self.body, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """Requests by path."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """One request; `body` is a struct, anything that aiohttp sends, or None."""
        headers = dict(options.pop("headers", {}))
        if isinstance(body, msgspec.Struct):
            body = encode_json(body)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        async with (
            asyncio.timeout(DEADLINE_S),
            self.session.request(
                method, self.url + path, data=body, headers=headers, server_hostname=COORDINATOR_NAME, **options
            ) as response,
        ):
            return Answer(status=response.status, headers=response.headers, body=await response.read())


class WorkerKey:
    """A worker's key pair."""

    def __init__(self) -> None:
        self.private = new_key()
        self.worker_id = worker_id_of_key(public_key_der(self.private.public_key()))

    def private_pem(self) -> bytes:
        """The private half, to listen or connect with."""
        return key_to_pem(self.private).encode()

    def certificate_request_pem(self) -> str:
        """A PKCS#10 request signed by the key."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.worker_id)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        return builder.sign(self.private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def shown_fingerprint(port: int) -> bytes:
    """SHA-256 of the certificate that whoever listens on the port shows."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=first_contact_context())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return fingerprint(der)


async def challenge(http: Http, worker_id: WorkerId, version: str = PROTOCOL_VERSION) -> tuple[str, Challenge]:
    """Ask for a challenge; returns the client's nonce too."""
    nonce = secrets.token_hex(NONCE_BYTES)
    request = ChallengeRequest(protocol_version=version, worker_id=worker_id, client_nonce=nonce)
    answer = await http.ask("POST", "/v1/join/challenge", request)
    assert answer.status == 200, answer.body
    return nonce, answer.read(Challenge)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A join request with its proof, ready to be sent (or tampered with)."""

    body: bytes
    proof: str
    transcript: Transcript

    def headers(self) -> dict[str, str]:
        """The header that carries the proof."""
        return {PROOF_HEADER: self.proof}


async def proven_join(
    http: Http, coordinator: RunningCoordinator, key: WorkerKey, *, secret: str | None = None, **changes: Any
) -> Proven:
    """All of the handshake but the last request. `changes`: fields of the `JoinRequest` to send instead."""
    nonce, opened = await challenge(http, key.worker_id)
    fields = {
        "worker_id": key.worker_id,
        "client_nonce": nonce,
        "server_nonce": opened.server_nonce,
        "certificate_request_pem": key.certificate_request_pem(),
        "time_s": datetime.now(UTC).timestamp(),
    }
    body = encode_json(JoinRequest(**(fields | changes)))
    transcript = Transcript(
        version=PROTOCOL_VERSION,
        purpose=JOIN_PURPOSE,
        coordinator_id=opened.coordinator_id,
        worker_id=key.worker_id,
        client_nonce=nonce,
        server_nonce=opened.server_nonce,
        tls_fingerprint=await shown_fingerprint(coordinator.port),
        body=body,
    )
    proof = join_proof(join_key(secret or join_secret_of(coordinator)), transcript, "worker")
    return Proven(body=body, proof=proof, transcript=transcript)


async def enrolled(coordinator: RunningCoordinator, key: WorkerKey, **changes: Any) -> JoinGrant:
    """Join for real; returns the grant."""
    async with http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, key, **changes)
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert answer.status == 200, answer.body
        return answer.read(JoinGrant)


def announcement(url: str = "https://127.0.0.1:7999", **changes: Any) -> Announce:
    """What a worker says first."""
    device = DeviceReport(
        device="cpu",
        precision="float32",
        n_threads=1,
        memory_bytes=10**9,
        bandwidth_bytes_per_s=1e10,
        flops_per_s=1e11,
    )
    fields = {
        "url": url,
        "hostname": "scripted",
        "version": "0",
        "device": device,
        "epoch": 0,
        "spans": (),
        "files": (),
    }
    return Announce(**(fields | changes))


@dataclass(slots=True, kw_only=True)
class ScriptedWorker:
    """A worker that says and does only what a test has it say and do, but for answering the coordinator's pings."""

    key: WorkerKey
    grant: JoinGrant
    socket: aiohttp.ClientWebSocketResponse
    http: Http
    url: str
    frames: asyncio.Queue[aiohttp.WSMessage] = field(default_factory=asyncio.Queue)
    """What came on the control socket and no test has taken yet."""

    @property
    def worker_id(self) -> WorkerId:
        """Its id."""
        return self.key.worker_id

    async def send(self, message: Any) -> None:
        """Say something on the control socket; bytes go as they are."""
        await self.socket.send_bytes(message if isinstance(message, bytes) else encode_message(message))

    async def receive(self, kind: type[M]) -> M:
        """The next message of a kind; others are passed over. Fails if the socket ends before."""
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.next()) is not None:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"the socket ended with code {self.socket.close_code}")

    async def next(self) -> CoordinatorToWorker | None:
        """The next message, however long it takes; None once the socket has ended."""
        frame = await self.frames.get()
        if frame.type is aiohttp.WSMsgType.BINARY:
            return decode_message(frame.data, CoordinatorToWorker)
        self.frames.put_nowait(frame)  # for whoever asks again
        return None

    async def closed(self) -> int | None:
        """Wait for the end of the socket; returns its close code."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.next() is not None:
                pass
        return self.socket.close_code

    async def listen(self) -> None:
        """Take what comes until the socket ends; who doesn't is taken for dead, since nobody answers the pings."""
        while (frame := await self.socket.receive()).type is aiohttp.WSMsgType.BINARY:
            self.frames.put_nowait(frame)
        self.frames.put_nowait(frame)

    async def hold(self, assign: Assign, state: str = "ready") -> None:
        """Say that everything assigned is in a state, and that one is alive."""
        spans = tuple(
            SpanStatus(model=s.model, revision=s.revision, blocks=s.blocks, state=state, reason="")  # type: ignore[arg-type]
            for s in assign.spans
        )
        await self.send(SpanReport(epoch=assign.epoch, spans=spans))
        await self.beat()

    async def beat(self) -> None:
        """A heartbeat of an idle worker."""
        await self.send(
            Heartbeat(
                n_sessions=0,
                n_queued=0,
                free_kv_bytes=10**8,
                decode_s_per_block=0.0,
                prefill_s_per_token_block=0.0,
            )
        )


@asynccontextmanager
async def joined_worker(
    coordinator: RunningCoordinator,
    *,
    key: WorkerKey | None = None,
    announce: Announce | None = None,
    port: int = 7999,
) -> AsyncIterator[ScriptedWorker]:
    """Join, open a control socket and announce; the socket is closed with the context.

    `announce` replaces the usual announcement; `port` is the one that the usual one advertises.
    """
    key = key if key is not None else WorkerKey()
    grant = await enrolled(coordinator, key)
    async with connected_worker(coordinator, key, grant, announce=announce, port=port) as worker:
        yield worker


@asynccontextmanager
async def connected_worker(
    coordinator: RunningCoordinator,
    key: WorkerKey,
    grant: JoinGrant,
    *,
    announce: Announce | None = None,
    port: int = 7999,
    version: str = PROTOCOL_VERSION,
) -> AsyncIterator[ScriptedWorker]:
    """`joined_worker`, of a worker that has its credentials and speaks this version of the protocol."""
    async with (
        http_session(coordinator, grant.session_token) as http,
        http.session.ws_connect(
            f"{http.url}/v1/worker/control",
            server_hostname=COORDINATOR_NAME,
            headers={VERSION_HEADER: version},
        ) as socket,
    ):
        url = f"https://127.0.0.1:{port}"
        worker = ScriptedWorker(key=key, grant=grant, socket=socket, http=http, url=url)
        async with running_beside(listening=worker.listen()):
            await worker.send(announce if announce is not None else announcement(url))
            yield worker


async def eventually(question: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """What `question` answers, once that is true; asked anew until the deadline."""
    until = time.monotonic() + deadline_s
    while not (answer := question()):
        assert time.monotonic() < until, "it didn't happen"
        await asyncio.sleep(0.01)
    return answer


async def eventually_answered(question: Callable[[], Awaitable[Any]], deadline_s: float = DEADLINE_S) -> Any:
    """As `eventually`, of a question that waits itself."""
    until = time.monotonic() + deadline_s
    while not (answer := await question()):
        assert time.monotonic() < until, "it didn't happen"
        await asyncio.sleep(0.01)
    return answer


# ------------------------------------------------------------------ models without weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model whose files are random bytes, in a coordinator's store."""

    manifest: Manifest
    manifest_bytes: bytes
    revision: Revision
    contents: dict[str, bytes]
    """By hash."""


def stored_model(store: FileStore, *, n_blocks: int = 4, context_length: int = 128) -> StoredModel:
    """Put a model into the store; each is another one. Blocks (for milliseconds)."""
    contents: dict[str, bytes] = {}

    def file(name: str, n_bytes: int, n_parameters: int = 0) -> ModelFile:
        data = secrets.token_bytes(n_bytes)
        stored = store.put(data)
        contents[stored.sha256] = data
        return ModelFile(name=name, sha256=stored.sha256, size_bytes=stored.size_bytes, n_parameters=n_parameters)

    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=16,
        vocab_size=64,
        context_length=context_length,
        kv_elements_per_token=32,
        weights_dtype="float32",
        is_chat=False,
        blocks=tuple(file(f"block-{i}.safetensors", 400, 100) for i in range(n_blocks)),
        before=(file("embedding.safetensors", 300, 75),),
        after=(file("after.safetensors", 200, 50),),
        auxiliary=(file("config.json", 100),),
    )
    data = encode_manifest(manifest)
    store.put(data)
    return StoredModel(manifest=manifest, manifest_bytes=data, revision=revision_of(data), contents=contents)


async def add_model(coordinator: RunningCoordinator, name: str = "tiny", **shape: int) -> StoredModel:
    """Store a model and have the coordinator serve it, over the admin API."""
    model = await asyncio.to_thread(lambda: stored_model(FileStore(coordinator.state_folder.files), **shape))
    async with http_session(coordinator, key_of(coordinator, "admin")) as http:
        request = AddModelRequest(name=ModelName(name), revision=model.revision)
        answer = await http.ask("POST", "/admin/v1/models", request)
        assert answer.status == 201, answer.body
    return model
