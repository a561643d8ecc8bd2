"""Class 6. Defences: the MAC is over the bytes as they were sent, and over what is asked; nothing else is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from protocol.errors import WrongSecretError
from protocol.handshake import PROOF_HEADER
from tests.support.coordinators import http_session, join_secret_of, running_coordinator
from tests.support.joining import WorkerKey, proven_join
from tests.support.meddler import Meddler, meddling
from worker.enrolment import enrol
from worker.identity import load_identity

SAME_IN_JSON: dict[str, Callable[[bytes], bytes]] = {
    "a space": lambda body: body + b" ",
    "another order": lambda body: json.dumps(dict(reversed(json.loads(body).items()))).encode(),
    "escapes": lambda body: body.replace(b"worker_id", b"\\u0077orker_id", 1),
    "a field twice": lambda body: body.replace(b"{", b'{"time_s":0.0,', 1),
}


@pytest.mark.parametrize("how", SAME_IN_JSON)
async def test_a_body_that_only_means_the_same_is_refused(tmp_path: Path, how: str) -> None:
    """Fails if the MAC is over the parsed request in a canonical form instead of its bytes."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        body = SAME_IN_JSON[how](proven.body)
        answer = await http.ask("POST", "/v1/join", body, headers=proven.headers())
        assert answer.status in (400, 401), answer.body
        assert not coordinator.cluster.state.workers


async def test_every_byte_of_the_body_counts(tmp_path: Path) -> None:
    """Fails if the body isn't under the MAC: the clock is changed by a second."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        time_s = float(int(utc_now_s()))
        proven = await proven_join(http, coordinator, WorkerKey(), time_s=time_s)
        body = proven.body.replace(str(time_s).encode(), str(time_s + 1).encode())
        assert body != proven.body
        answer = await http.ask("POST", "/v1/join", body, headers=proven.headers())
        assert answer.status == 401


async def test_a_proof_is_for_its_method_and_path_only(tmp_path: Path) -> None:
    """Fails if another route took the proof, or if a query that the proof doesn't cover were let through."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        for method, path in (
            ("PUT", "/v1/join"),
            ("POST", "/v1/join/"),
            ("POST", "//v1/join"),
            ("POST", "/v1/join?worker_id=w-other"),
            ("POST", "/v1/worker/sources"),
        ):
            answer = await http.ask(method, path, proven.body, headers=proven.headers())
            assert answer.status in (400, 401, 404, 405), (method, path, answer.body)
        assert not coordinator.cluster.state.workers
        assert (await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())).status == 200


async def test_compressed_bodies_and_several_proofs_are_refused(tmp_path: Path) -> None:
    """Fails if the body is unpacked before it is checked, or the first or last of two proofs is taken."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        headers = proven.headers() | {"Content-Encoding": "deflate"}
        answer = await http.ask("POST", "/v1/join", zlib.compress(proven.body), headers=headers)
        assert answer.status == 400
        two = [(PROOF_HEADER, proven.proof), (PROOF_HEADER, "0" * 64)]
        async with http.session.post(
            f"{http.url}/v1/join",
            data=proven.body,
            headers=two,
            server_hostname="coordinator.brigade.internal",
        ) as response:
            assert response.status == 401
        assert not coordinator.cluster.state.workers


class Forger(Meddler):
    """Has the coordinator's certificate and key, but not the secret; changes the grant."""

    def answer(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        if path == "/v1/join":
            grant = json.loads(body)
            body = json.dumps(grant | {"session_token": grant["session_token"] + "x"}).encode()
        return body, proof


async def test_a_worker_takes_no_grant_that_was_altered(tmp_path: Path) -> None:
    """Fails if the coordinator's proof isn't over its answer's body."""
    async with running_coordinator(tmp_path) as coordinator:
        identity = load_identity(tmp_path)
        async with meddling(coordinator, Forger(), tmp_path, has_stolen_key=True) as between:
            with pytest.raises(WrongSecretError, match="can't prove"):
                await enrol(identity, (between.url,), join_secret_of(coordinator), utc_now_s)
        assert not identity.certificate_path.exists()
