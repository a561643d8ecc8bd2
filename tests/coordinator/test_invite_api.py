from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from protocol.admin_rest import AuditPage
from protocol.cluster_rest import ClusterStatus
from protocol.errors import ForbiddenError
from protocol.invite_rest import CreatedInvite, CreateInviteRequest, InviteInfo, InviteList
from protocol.invites import invite_from_text
from protocol.secret_rest import RotateSecretRequest, SecretsInfo
from tests.support.coordinators import http_session, key_of, running_coordinator
from worker.enrolment import enrol
from worker.identity import load_identity

PATH = "/admin/v1/invites"


async def test_a_worker_joins_by_an_invite_and_comes_again_and_nobody_else_does(tmp_path: Path) -> None:
    one, other = load_identity(tmp_path), load_identity(_made(tmp_path / "other"))
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        answer = await admin.ask("POST", PATH, CreateInviteRequest(name="the shed"))
        assert answer.status == 201
        created = answer.read(CreatedInvite)
        assert created.urls == (coordinator.url,)
        status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
        assert status.joining == (
            "not announced on the local network: it listens on 127.0.0.1 only; 1 invite open (`coord invite list`)"
        )
        invite = invite_from_text(created.invite)
        assert (invite.urls, invite.ca_fingerprint) == (created.urls, coordinator.authority.ca_fingerprint)
        await enrol(one, invite.urls, invite, utc_now_s)
        with pytest.raises(ForbiddenError, match="is used up: it was for 1 worker;"):
            await enrol(other, invite.urls, invite, utc_now_s)
        await admin.ask("POST", "/admin/v1/secrets/join/rotate", RotateSecretRequest(grace_s=0))
        await enrol(one, invite.urls, invite, utc_now_s)
        (join,) = (await admin.ask("GET", "/admin/v1/secrets")).read(SecretsInfo).joins
        assert (join.invite_id, join.is_current) == (invite.invite_id, True)

        (listed,) = (await admin.ask("GET", f"{PATH}?state=used_up")).read(InviteList).invites
        assert (listed.name, listed.workers) == ("the shed", (one.worker_id,))
        assert created.invite.rpartition(".")[2] not in str(listed)
        path = f"{PATH}/{invite.invite_id}"
        assert (await admin.ask("DELETE", path)).read(InviteInfo).state == "revoked"
        with pytest.raises(ForbiddenError, match="was revoked on"):
            await enrol(one, invite.urls, invite, utc_now_s)
        assert (await admin.ask("GET", path)).read(InviteInfo).state == "revoked"
        page = (await admin.ask("GET", f"/admin/v1/audit?subject={invite.invite_id}")).read(AuditPage)
        assert [line.action for line in page.entries] == ["invite_revoked", "invite_used", "invite_created"]
        (revoked, used, made) = page.entries
        assert (made.before, made.who, revoked.who) == (None, f"key:{listed.created_by}", made.who)
        assert used.before is not None
        assert used.after is not None
        assert (used.before["n_used"], used.after["n_used"]) == (0, 1)
        assert one.worker_id in used.details
        page = (await admin.ask("GET", f"/admin/v1/audit?subject={one.worker_id}")).read(AuditPage)
        assert page.entries[-1].details == f"enrolled by the invite {invite.invite_id}"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"n_uses":0}', "n_uses"),
        (b'{"n_uses":101}', "n_uses"),
        (b'{"expires_in_s":59}', "expires_in_s"),
        (b'{"urls":["http://10.0.0.1"]}', "plain HTTP"),
        (b'{"urls":["https://a","https://b","https://c","https://d","https://e","https://f","https://g",'
         b'"https://h","https://i"]}', "urls"),
        (b'{"name":"\\u001b[2J"}', "printable"),
        (b'{"secret":"x"}', "secret"),
    ],
)  # fmt: skip
async def test_what_no_invite_can_be_is_refused(tmp_path: Path, body: bytes, says: str) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
        http_session(coordinator, key_of(coordinator, "client")) as client,
    ):
        refused = await admin.ask("POST", PATH, body)
        assert (refused.status, says in refused.body.decode()) == (400, True), refused.body
        assert (await client.ask("POST", PATH, b"{}")).status == 403
        assert (await admin.ask("GET", f"{PATH}/nosuch")).status == 404
        page = (await admin.ask("GET", PATH)).read(InviteList)
        assert page.invites == ()


async def test_invites_are_listed_in_pages(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        for number in range(3):
            await admin.ask("POST", PATH, CreateInviteRequest(name=str(number), urls=("https://here:1",)))
        first = (await admin.ask("GET", f"{PATH}?limit=2")).read(InviteList)
        rest = (await admin.ask("GET", f"{PATH}?limit=2&cursor={first.next_cursor}")).read(InviteList)
        assert [each.name for each in (*first.invites, *rest.invites)] == ["2", "1", "0"]
        assert rest.next_cursor is None
