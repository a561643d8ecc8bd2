"""THREATS.md 24: workers that serve other weights, or garbage now and then, or another precision than they say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from coordinator.audit_neighbours import MAX_SOCKETS
from coordinator.audit_store import RecordedAnswer
from coordinator.keys import AUDITOR, NEIGHBOURS
from coordinator.policy.events import SettingsChanged
from coordinator.policy.trust import TrustRecord
from coordinator.policy.trust_events import TrustPinned, WorkerBanned
from protocol.audit_rest import AuditInfo, AuditList
from protocol.compatibility import VERSION_HEADER
from protocol.errors import InternalError
from protocol.frames import encode_frame
from protocol.ids import BlockRange, ModelName, SessionId
from protocol.messages import PROTOCOL_VERSION, OpenSession
from protocol.tls import COORDINATOR_NAME, client_context, worker_name
from tests.support.cheating import change_weights, cheat, garbage_on
from tests.support.coordinators import http_session, key_of
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, WholeCluster, greedy_ids, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROMPT = [5, 9, 30, 4, 77, 12]

Audit = Callable[[Member], Awaitable[AuditInfo]]


def auditing(cluster: WholeCluster) -> Audit:
    async def audit(member: Member) -> AuditInfo:
        async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
            answer = await http.ask("POST", f"/admin/v1/workers/{member.worker.worker_id}/audits")
            assert answer.status == 200, answer.body
            return answer.read(AuditInfo)

    return audit


async def audits(cluster: WholeCluster) -> tuple[AuditInfo, ...]:
    async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
        return (await http.ask("GET", "/admin/v1/audits")).read(AuditList).audits


def level(cluster: WholeCluster, member: Member) -> str:
    return cluster.coordinator.cluster.state.workers[member.worker.worker_id].trust.level


def record(cluster: WholeCluster, member: Member) -> TrustRecord:
    return cluster.coordinator.cluster.state.trust.get(member.worker.worker_id, TrustRecord())


async def trusted(cluster: WholeCluster, member: Member) -> None:
    worker_id = member.worker.worker_id
    await cluster.coordinator.cluster.handle(TrustPinned(worker_id=worker_id, score=0.9, by="test", reason="known"))


async def test_other_weights_are_found_by_a_third_and_routes_avoid_them(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, blocks) for name, blocks in (("a", "0:4"), ("b", "0:4"), ("c", "1:4"))]
        await cluster.until_ready()
        audit, bad = auditing(cluster), members[1]
        for member in members:
            found = await audit(member)
            assert (found.outcome, found.partner_outcome) == ("passed", "passed")
        assert all(record(cluster, member).opinions == () for member in members)  # among themselves: no praise
        await change_weights(bad, 2, noise=0.1)
        async with asyncio.timeout(30.0):
            while (found := await audit(bad)).referee == "":  # with c over 1:4, with a over 0:4: then nobody knows
                assert found.outcome == "suspected"
        assert found.outcome == "failed"
        assert found.partner_outcome == "passed"
        assert level(cluster, bad) == "quarantined"
        assert "quarantined" not in [level(cluster, member) for member in members[::2]]
        generation = await cluster.generate("tiny", PROMPT, max_tokens=8)
        assert bad.worker.worker_id not in {hop.worker_id for hop in generation.route}
        assert list(generation.token_ids) == greedy_ids(whole, PROMPT, 8)
        events, _ = await cluster.coordinator.repository.trust_history(bad.worker.worker_id)
        assert any("the projections of" in event.reason and event.kind == "audit_failed" for event in events)


async def test_garbage_on_a_tenth_of_the_steps_is_found_without_anybody_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.policy.audit_schedule.SHORTEST_S", 0.5)
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3, audit_share=0.5) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        bad = members[2]
        await cheat(bad, 1, garbage_on(0.1, seed=7))
        await eventually(lambda: level(cluster, bad) == "quarantined", 60.0)
        listed = await audits(cluster)
        assert sum(bad.worker.worker_id in (info.worker_id, info.partner) for info in listed) <= 20
        # an audit that nobody could decide suspects both, which makes an honest newcomer weak, and no worse
        assert {level(cluster, member) for member in members[:2]} <= {"probation", "weak"}


async def test_honest_workers_of_other_precisions_pass(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "qwen3")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [
            await cluster.join("a", "0:4"),
            await cluster.join("b", "0:4", precision="bfloat16"),
            await cluster.join("c", "2:4", kv_precision="int8"),
        ]
        await cluster.until_ready()
        audit = auditing(cluster)
        for member in members * 3:
            found = await audit(member)
            assert found.outcome == "passed", found
        assert [level(cluster, member) for member in members] == ["probation"] * 3


async def test_of_two_that_differ_the_kept_answer_says_who_is_wrong(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        good, bad = await cluster.join("a", "0:4"), await cluster.join("b", "0:4")
        await cluster.until_ready()
        audit = auditing(cluster)
        await trusted(cluster, good)
        assert (await audit(bad)).outcome == "passed"  # and the trusted one's answer is kept
        assert [opinion.kind for opinion in record(cluster, bad).opinions] == ["audit_passed"]
        for _ in range(2):  # nobody fails by two probes alone
            assert (await audit(bad)).outcome == "passed"
        await change_weights(bad, 0, noise=0.1)
        found = await audit(good)
        assert (found.outcome, found.partner_outcome, found.referee) == ("passed", "failed", "recorded")
        assert level(cluster, bad) == "quarantined"


async def test_one_that_is_alone_is_held_against_what_a_trusted_one_said_in_quarantine_too(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        good, bad = await cluster.join("a", "0:4"), await cluster.join("b", "0:4")
        await cluster.until_ready()
        audit = auditing(cluster)
        await trusted(cluster, good)
        for _ in range(3):  # nobody fails by two probes alone
            assert (await audit(bad)).outcome == "passed"
        await change_weights(bad, 0, noise=0.1)
        # before anybody knows: whoever is in quarantine loses its blocks as soon as others serve them
        await good.vanish()
        await eventually(
            lambda: cluster.coordinator.cluster.state.workers[good.worker.worker_id].presence != "here"
        )
        for _ in range(2):
            found = await audit(bad)
            assert (found.outcome, found.partner) == ("failed", "recorded")
            assert level(cluster, bad) == "quarantined"


async def test_where_nobody_can_say_who_is_wrong_both_lose_a_little_once(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        one = await cluster.join("a", "0:4")
        await cluster.until_ready()
        audit = auditing(cluster)
        found = await audit(one)
        assert found.outcome == "undecided"
        assert "a second worker" in found.reason
        other = await cluster.join("b", "0:4")
        await cluster.until_ready()
        await cheat(other, 1, lambda states: states * 1.5)
        for _ in range(5):
            found = await audit(one)
            assert (found.outcome, found.partner_outcome) == ("suspected", "suspected")
        assert [level(cluster, member) for member in (one, other)] == ["weak", "weak"]
        assert [info.outcome for info in await audits(cluster)] == ["suspected"] * 5 + ["undecided"]


async def test_no_answer_counts_but_a_worker_that_leaves_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        good, bad = await cluster.join("a", "0:4"), await cluster.join("b", "0:4")
        await cluster.until_ready()
        audit = auditing(cluster)
        bad.worker.data_plane._sessions.is_draining = True  # type: ignore[union-attr]
        assert (await audit(bad)).outcome == "undecided"
        assert record(cluster, bad).opinions == ()
        bad.worker.data_plane._sessions.is_draining = False  # type: ignore[union-attr]

        def refuse(*_: object) -> None:
            raise InternalError("not for you")

        await cheat(bad, 0, refuse)  # type: ignore[arg-type]
        found = await audit(bad)
        assert (found.outcome, found.partner_outcome) == ("unanswered", "undecided")
        assert [opinion.kind for opinion in record(cluster, bad).opinions] == ["hop_failed"]
        monkeypatch.setattr("coordinator.audit_asking.ANSWER_S", 0.0)
        assert (await audit(good)).outcome == "unanswered"


async def test_nobody_gets_in_where_audited_workers_hand_on_to(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as cluster, aiohttp.ClientSession() as http:
        url = f"https://127.0.0.1:{cluster.coordinator.port}/v1/data"
        options = {
            "ssl": client_context(cluster.coordinator.authority.ca_pem),
            "server_hostname": COORDINATOR_NAME,
            "headers": {VERSION_HEADER: PROTOCOL_VERSION},
        }
        async with cluster.coordinator.application[NEIGHBOURS].one(2000) as neighbour:
            for _ in range(2 * MAX_SOCKETS):  # and they take nobody's place
                with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                    await http.ws_connect(url, **options)  # type: ignore[arg-type]
            options["server_hostname"] = worker_name(neighbour.worker_id)

            async def answer(ticket: str) -> aiohttp.WSMsgType:
                opening = OpenSession(session_id=SessionId("s"), tickets=(ticket,), deadline_s=9.0)
                socket = await http.ws_connect(url, **options)  # type: ignore[arg-type]
                await socket.send_bytes(encode_frame(opening))
                return (await socket.receive()).type

            assert await answer("x" * 2000) is aiohttp.WSMsgType.CLOSE  # no frame of an audit is that long
            assert await answer("another") is aiohttp.WSMsgType.CLOSE
            assert await answer(neighbour.next_ticket) is aiohttp.WSMsgType.BINARY
            assert await answer(neighbour.next_ticket) is aiohttp.WSMsgType.CLOSE  # once


async def test_two_that_poison_kept_answers_frame_nobody(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        one, friend, cheat = members
        await cluster.until_ready()
        audit, auditor = auditing(cluster), cluster.coordinator.application[AUDITOR]
        await trusted(cluster, friend)
        while not any(kept_of(await records(cluster), friend)):
            assert (await audit(one)).outcome == "passed"
        (good, *_) = kept_of(await records(cluster), friend)
        poison = replace(good, worker_id=cheat.worker.worker_id, projection=((1.0,) * 32,) * 24)
        revision = cluster.coordinator.cluster.state.models[ModelName("tiny")].revision
        for number in range(20):
            one_of_many = replace(poison, seed=f"seed {number}")
            await auditor.store.record(revision, BlockRange(0, 4), one_of_many, datetime.now(UTC))
        assert kept_of(await records(cluster), friend)  # they can't push out what others said
        for member in (friend, cheat):
            await member.stop()
        found = {(await audit(one)).outcome for _ in range(8)}
        assert found <= {"passed", "suspected"}
        assert level(cluster, one) != "quarantined"
        banned = WorkerBanned(worker_id=cheat.worker.worker_id, by="test", reason="a cheat")
        await cluster.coordinator.cluster.handle(banned)
        assert [(await audit(one)).outcome for _ in range(4)] == ["passed"] * 4


async def records(cluster: WholeCluster) -> tuple[RecordedAnswer, ...]:
    revision = cluster.coordinator.cluster.state.models[ModelName("tiny")].revision
    return await cluster.coordinator.application[AUDITOR].store.recorded(revision, BlockRange(0, 4))


def kept_of(found: tuple[RecordedAnswer, ...], member: Member) -> list[RecordedAnswer]:
    return [one for one in found if one.worker_id == member.worker.worker_id]


async def test_whoever_is_asked_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.policy.audit_schedule.SHORTEST_S", 3000.0)  # none comes by itself
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "ab"]
        await cluster.until_ready()
        auditor = cluster.coordinator.application[AUDITOR]
        target, partner = (member.worker.worker_id for member in members)
        settings = SettingsChanged(stored={}, in_force={"audit_share": 0.01}, by="test")
        await cluster.coordinator.cluster.handle(settings)
        n_asked = 0
        while partner not in auditor._not_now():
            assert n_asked < 10
            assert (await auditor.audit(target, is_scheduled=True)).partner == partner
            n_asked += 1
        found = await auditor.audit(target, is_scheduled=True)
        assert (found.partner, "loaded, or busy" in found.reason) == ("", True)
        assert len(await auditor.store.newest(100)) == n_asked  # nobody was asked: that is no news
