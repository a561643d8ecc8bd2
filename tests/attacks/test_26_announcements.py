"""Class 26, on the local network. Defence: who is announced proves the secret as anybody else must."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from protocol.handshake import PROOF_HEADER
from tests.support.announced import announced, only
from tests.support.coordinators import http_session, join_secret_of, running_coordinator
from tests.support.meddler import Meddler, meddling
from worker.discovery import found_coordinator
from worker.identity import load_identity

pytestmark = pytest.mark.timeout(60)


class Recorder(Meddler):
    """Passes everything on to the coordinator, and keeps what the worker sent to join."""

    def request(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        if path == "/v1/join":
            self.sent = body, proof
        return body, proof


async def test_a_false_announcement_is_refused_learns_nothing_and_the_next_is_tried(tmp_path: Path) -> None:
    """Fails if whoever is announced is believed for that, or for what the coordinator answered to somebody else."""
    async with (
        running_coordinator(tmp_path) as coordinator,
        meddling(coordinator, Recorder(), tmp_path) as rogue,
        announced(int(rogue.url.rpartition(":")[2])) as rogue_id,
        announced(coordinator.port, coordinator.authority.coordinator_id) as our_id,
    ):
        identity, secret, lines = load_identity(tmp_path), join_secret_of(coordinator), list[str]()
        found = await found_coordinator(identity, secret, utc_now_s, lines.append, only(rogue_id, our_id))
        assert found.urls == (coordinator.url,)
        assert rogue.statuses["/v1/join"] == 401
        assert any(line.startswith("not this one:") for line in lines)
        body, proof = rogue.sent
        assert secret.encode() not in body
        async with http_session(coordinator) as http:  # and what it was sent opens nothing
            answer = await http.ask("POST", "/v1/join", body, headers={PROOF_HEADER: proof})
        assert answer.status == 401
