"""Class 1. Defences: role, both ids, both nonces, TLS fingerprint and body are under the join proof's MAC."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from protocol.errors import WrongSecretError
from protocol.handshake import PROOF_HEADER, join_key, join_proof
from tests.support.coordinators import http_session, join_secret_of, running_coordinator
from tests.support.joining import WorkerKey, proven_join
from tests.support.meddler import Meddler, meddling
from worker.enrolment import enrol
from worker.identity import load_identity


async def test_a_relay_with_its_own_certificate_gets_neither_side(tmp_path: Path) -> None:
    """Fails without the TLS fingerprint under the MAC: everything else is passed on as it was sent."""
    async with running_coordinator(tmp_path) as coordinator:
        async with meddling(coordinator, Meddler(), tmp_path) as between:
            with pytest.raises(WrongSecretError):
                await enrol(load_identity(tmp_path), (between.url,), join_secret_of(coordinator), utc_now_s)
        assert between.statuses["/v1/join"] == 401
        assert not coordinator.cluster.state.workers


async def test_the_same_relay_works_once_it_shows_the_coordinators_certificate(tmp_path: Path) -> None:
    """The counterpart of the test above: only the certificate is different."""
    async with running_coordinator(tmp_path) as coordinator:
        async with meddling(coordinator, Meddler(), tmp_path, has_stolen_key=True) as between:
            await enrol(load_identity(tmp_path), (between.url,), join_secret_of(coordinator), utc_now_s)
        assert between.statuses["/v1/join"] == 200


class Reflector(Meddler):
    """Answers a worker with the worker's own body and proof."""

    def request(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        self.sent = body, proof
        return body, proof

    def answer(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        return self.sent if path == "/v1/join" else (body, proof)


async def test_a_workers_own_proof_thrown_back_at_it_is_no_coordinators(tmp_path: Path) -> None:
    """Fails without the role under the MAC."""
    async with (
        running_coordinator(tmp_path) as coordinator,
        meddling(coordinator, Reflector(), tmp_path, has_stolen_key=True) as between,
    ):
        with pytest.raises(WrongSecretError, match="can't prove"):
            await enrol(load_identity(tmp_path), (between.url,), join_secret_of(coordinator), utc_now_s)


async def test_the_coordinators_role_lets_nobody_in(tmp_path: Path) -> None:
    """Fails without the role under the MAC, in the other direction."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        reflected = join_proof(join_key(join_secret_of(coordinator)), proven.transcript, "coordinator")
        answer = await http.ask("POST", "/v1/join", proven.body, headers={PROOF_HEADER: reflected})
        assert answer.status == 401


@pytest.mark.parametrize("is_same_worker", [True, False])
async def test_a_proof_of_a_parallel_session_is_of_no_use(tmp_path: Path, is_same_worker: bool) -> None:
    """Fails without nonces, worker id and body under the MAC (a peer's MAC was over the nonce alone)."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        victim = WorkerKey()
        overheard = await proven_join(http, coordinator, victim)
        own = await proven_join(http, coordinator, victim if is_same_worker else WorkerKey())
        answer = await http.ask("POST", "/v1/join", own.body, headers=overheard.headers())
        assert answer.status == 401
        assert (await http.ask("POST", "/v1/join", overheard.body, headers=overheard.headers())).status == 200
