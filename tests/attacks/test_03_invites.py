"""Class 3, invites. Defences: so many workers, so long, until revoked; and who holds one too is no coordinator."""

from __future__ import annotations

import dataclasses
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator, utc_now_s
from protocol.errors import ForbiddenError, WrongSecretError
from protocol.handshake import PROOF_HEADER, join_proof
from protocol.ids import InviteId
from protocol.invite_rest import CreatedInvite, CreateInviteRequest
from protocol.invites import Invite, invite_from_text
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, proven_join
from worker.enrolment import enrol
from worker.identity import Identity, load_identity


async def invited(coordinator: RunningCoordinator, **wanted: int) -> Invite:
    async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
        answer = await admin.ask("POST", "/admin/v1/invites", CreateInviteRequest(**wanted))
        return invite_from_text(answer.read(CreatedInvite).invite)


def worker(folder: Path) -> Identity:
    folder.mkdir(exist_ok=True)
    return load_identity(folder)


async def revoke(coordinator: RunningCoordinator, invite: Invite) -> None:
    async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
        assert (await admin.ask("DELETE", f"/admin/v1/invites/{invite.invite_id}")).status == 200


async def test_an_invite_that_got_into_other_hands_lets_nobody_in_a_second_time(tmp_path: Path) -> None:
    """Fails if uses aren't counted by worker."""
    async with running_coordinator(tmp_path) as coordinator:
        invite = await invited(coordinator)
        await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)
        with pytest.raises(ForbiddenError, match="used up"):
            await enrol(worker(tmp_path / "b"), invite.urls, invite, utc_now_s)


async def test_an_old_invite_that_is_found_lets_nobody_in(tmp_path: Path) -> None:
    """Fails if an invite's end isn't looked at."""
    late_s = 0.0
    async with running_coordinator(tmp_path, clock=lambda: utc_now_s() + late_s) as coordinator:
        invite = await invited(coordinator, expires_in_s=60)
        late_s = 61.0
        with pytest.raises(ForbiddenError, match="was good until"):
            await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)


async def test_a_revoked_invite_keeps_out_those_too_who_came_by_it(tmp_path: Path) -> None:
    """Fails if who came by it once is let in again before it is looked at whether it is revoked."""
    async with running_coordinator(tmp_path) as coordinator:
        invite = await invited(coordinator)
        await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)
        await revoke(coordinator, invite)
        with pytest.raises(ForbiddenError, match="was revoked"):
            await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)


async def test_one_invite_tells_nothing_of_another_and_a_stranger_nothing_of_any(tmp_path: Path) -> None:
    """Fails if invites share a key, or are looked up before the proof has verified."""
    async with running_coordinator(tmp_path) as coordinator:
        mine, theirs = await invited(coordinator), await invited(coordinator)
        await revoke(coordinator, mine)
        forged = dataclasses.replace(mine, invite_id=theirs.invite_id)
        unknown = dataclasses.replace(mine, invite_id=InviteId("00000000"), key=secrets.token_bytes(32))
        revoked = dataclasses.replace(mine, key=secrets.token_bytes(32))
        refusals = set()
        for number, invite in enumerate((forged, unknown, revoked)):
            async with http_session(coordinator) as http:
                refusals.add(await refusal(http, coordinator, invite, number))
        assert len(refusals) == 1


async def refusal(http: Http, coordinator: RunningCoordinator, invite: Invite, number: int) -> bytes:
    proven = await proven_join(http, coordinator, WorkerKey(), invite_id=invite.invite_id)
    proof = join_proof(invite.key, proven.transcript, "worker")
    answer = await http.ask("POST", "/v1/join", proven.body, headers={PROOF_HEADER: proof})
    assert answer.status == 401, number
    return answer.body


async def test_who_uses_an_invite_up_must_have_the_key_of_the_worker_that_it_names(tmp_path: Path) -> None:
    """Fails if a use is counted before the request is found to be signed by the worker's key."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        invite = await invited(coordinator)
        changes = {"invite_id": invite.invite_id, "certificate_request_pem": WorkerKey().certificate_request_pem()}
        proven = await proven_join(http, coordinator, WorkerKey(), **changes)
        proof = join_proof(invite.key, proven.transcript, "worker")
        assert (await http.ask("POST", "/v1/join", proven.body, headers={PROOF_HEADER: proof})).status == 401
        await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)


async def test_nothing_in_the_database_makes_an_invite(tmp_path: Path) -> None:
    """Fails if the key, or what it can be made of, is stored: rows are in backups, and on other machines."""
    async with running_coordinator(tmp_path) as coordinator:
        invite = await invited(coordinator)
        await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)
        with closing(sqlite3.connect(tmp_path / "state" / "brigade.db")) as database:
            dump = "\n".join(database.iterdump())
        assert invite.invite_id in dump
        for secret in (invite.key.hex(), invite.text().rpartition(".")[2]):
            assert secret not in dump


async def test_who_holds_the_same_invite_cannot_pose_as_the_coordinator(tmp_path: Path) -> None:
    """Fails without the CA's fingerprint in the invite: the key alone proves either side."""
    async with running_coordinator(tmp_path / "ours") as ours, running_coordinator(tmp_path / "theirs") as theirs:
        invite = await invited(ours, n_uses=2)
        # the other holder has a cluster of their own answer with the invite's key
        theirs.authority.invite_key = lambda _: invite.key  # type: ignore[method-assign]
        async with http_session(theirs, key_of(theirs, "admin")) as admin:
            made = await admin.ask("POST", "/admin/v1/invites", CreateInviteRequest())
        copied = dataclasses.replace(invite, invite_id=invite_from_text(made.read(CreatedInvite).invite).invite_id)
        with pytest.raises(WrongSecretError, match="for another cluster than the one that the invite"):
            await enrol(worker(tmp_path / "a"), (theirs.url,), copied, utc_now_s)


async def test_who_has_an_invite_and_saw_anothers_request_cannot_join_in_the_others_name(tmp_path: Path) -> None:
    """Fails if a request that was signed for another exchange is taken: whoever is announced is sent one."""
    victim = worker(tmp_path / "victim")
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        invite = await invited(coordinator)
        seen = victim.certificate_request_pem("for whoever was announced")
        thief = WorkerKey()
        thief.worker_id = victim.worker_id
        proven = await proven_join(
            http, coordinator, thief, invite_id=invite.invite_id, certificate_request_pem=seen
        )
        proof = join_proof(invite.key, proven.transcript, "worker")
        answer = await http.ask("POST", "/v1/join", proven.body, headers={PROOF_HEADER: proof})
        assert (answer.status, invite.key.hex() in str(answer.body)) == (401, False)
        await enrol(worker(tmp_path / "a"), invite.urls, invite, utc_now_s)  # and nothing was used up


async def test_who_holds_the_same_invite_cannot_grant_what_the_coordinator_granted_before(tmp_path: Path) -> None:
    """Fails if a CA certificate, which no one keeps secret, is enough to be taken for the coordinator."""
    async with running_coordinator(tmp_path / "ours") as ours, running_coordinator(tmp_path / "theirs") as theirs:
        invite, identity = await invited(ours, n_uses=2), worker(tmp_path / "a")
        await enrol(identity, invite.urls, invite, utc_now_s)
        granted_before = identity.certificate_path.read_text()
        async with http_session(theirs, key_of(theirs, "admin")) as admin:
            made = await admin.ask("POST", "/admin/v1/invites", CreateInviteRequest())
        theirs.authority.invite_key = lambda _: invite.key  # type: ignore[method-assign]
        theirs.authority.ca_pem = ours.authority.ca_pem
        theirs.authority.issue_worker_certificate = lambda *_, **__: granted_before  # type: ignore[method-assign]
        copied = dataclasses.replace(invite, invite_id=invite_from_text(made.read(CreatedInvite).invite).invite_id)
        with pytest.raises(WrongSecretError, match="isn't the coordinator that the invite"):
            await enrol(identity, (theirs.url,), copied, utc_now_s)
