"""A worker's whole way: join, control socket, sources, with real TLS on a real port."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from protocol.control_messages import Assign, Dismiss, FilesHeld, GenerationReport, Leaving
from protocol.error_forms import error_from_body
from protocol.handshake import PROOF_HEADER, Transcript, is_proof_valid, join_key
from protocol.ids import FileHash, SessionId
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from protocol.tickets import Ticket, verified_claims
from protocol.worker_rest import BadSource, NotComing, SourcesAnswer, SourcesRequest
from tests.support.coordinators import bearer, http_session, join_secret_of, key_of, running_coordinator
from tests.support.joining import WorkerKey, proven_join
from tests.support.scripted_worker import announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered


async def test_a_worker_joins_connects_and_is_given_blocks(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        async with joined_worker(coordinator) as worker:
            assign = await worker.receive(Assign)
            while not assign.spans:
                assign = await worker.receive(Assign)
            assert assign.spans[0].revision == model.revision
            await worker.hold(assign)
            record = await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].reported)
            assert record[0].state == "ready"


async def test_the_coordinator_proves_itself_over_its_answer(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert answer.status == 200
        fields = {name: getattr(proven.transcript, name) for name in Transcript.__slots__}
        theirs = Transcript(**(fields | {"body": answer.body}))
        key = join_key(join_secret_of(coordinator))
        assert is_proof_valid(key, theirs, "coordinator", answer.headers[PROOF_HEADER])
        assert not is_proof_valid(key, theirs, "worker", answer.headers[PROOF_HEADER])


async def test_a_socket_that_ends_is_noticed(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        async with joined_worker(coordinator) as worker:
            await worker.receive(Assign)
            worker_id = worker.worker_id
            assert coordinator.cluster.state.workers[worker_id].is_connected
        await eventually(lambda: not coordinator.cluster.state.workers[worker_id].is_connected)


async def test_a_second_socket_of_the_same_worker_dismisses_the_first(tmp_path: Path) -> None:
    key = WorkerKey()
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator, key=key) as first:
        await first.receive(Assign)
        async with joined_worker(coordinator, key=key) as second:
            assert (await first.receive(Dismiss)).error.code == "conflict"
            await first.closed()
            await second.beat()
            assert coordinator.cluster.state.workers[key.worker_id].is_connected


@pytest.mark.parametrize("first", [b"\xc1 no message", None])
async def test_a_first_message_that_is_no_announcement_dismisses(tmp_path: Path, first: bytes | None) -> None:
    message = FilesHeld(files=()) if first is None else first
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator, announce=message) as worker,  # type: ignore[arg-type]
    ):
        assert (await worker.receive(Dismiss)).error.code == "protocol_error"
        await worker.closed()


async def test_a_bad_message_dismisses_and_the_worker_counts_as_away(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        await worker.send(b"\x81\xa4type\xa4nope")
        assert (await worker.receive(Dismiss)).error.code == "protocol_error"
        await worker.closed()
        await eventually(lambda: not coordinator.cluster.state.workers[worker.worker_id].is_connected)


async def test_text_and_a_second_announcement_dismiss(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        async with joined_worker(coordinator) as worker:
            await worker.socket.send_str("hello")
            assert "binary" in (await worker.receive(Dismiss)).error.message
        async with joined_worker(coordinator) as worker:
            await worker.send(announcement())
            assert "second Announce" in (await worker.receive(Dismiss)).error.message


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254:80",
        "https://0.0.0.0:7999",
        "https://[::]:7999",
        "https://224.0.0.1:7999",
        "http://127.0.0.1:7999",
        "https://127.0.0.1",
        "https://[fe80::1]:7999",
    ],
)
async def test_an_address_that_others_must_not_dial_is_refused(tmp_path: Path, url: str) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator, announce=announcement(url)) as worker,
    ):
        error = error_from_body((await worker.receive(Dismiss)).error)
        assert error.code == "invalid_request"
        assert "https://" in error.message
        assert coordinator.cluster.state.workers[worker.worker_id].url == ""


async def test_leaving_takes_nothing_new(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        await worker.send(Leaving(reason="SIGTERM"))
        await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].is_draining)


async def test_sources_are_the_other_workers(tmp_path: Path) -> None:
    held = FileHash("a" * 64)
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator) as first,
        joined_worker(coordinator, port=7998) as second,
    ):
        await first.receive(Assign)
        await second.receive(Assign)
        await second.send(FilesHeld(files=(held,)))
        await eventually(lambda: coordinator.cluster.state.workers[second.worker_id].files)
        request = SourcesRequest(files=(held, FileHash("b" * 64)))
        answer = (await first.http.ask("POST", "/v1/worker/sources", request)).read(SourcesAnswer)
        assert [source.worker_id for source in answer.sources[held]] == [second.worker_id]
        assert list(answer.sources) == [held]
        own = (await second.http.ask("POST", "/v1/worker/sources", request)).read(SourcesAnswer)
        assert own.sources == {}


async def test_a_worker_that_is_here_is_not_believed_that_it_does_not_come(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        said = NotComing(reason="its start failed")
        assert (await worker.http.ask("POST", "/v1/worker/not-coming", said)).status == 204
        assert coordinator.cluster.state.workers[worker.worker_id].presence == "here"
        assert (await worker.http.ask("POST", "/v1/worker/not-coming", b"{}")).status == 400


async def test_a_bad_source_is_named_no_more_and_goes_into_the_audit_log(tmp_path: Path) -> None:
    held, other = FileHash("a" * 64), FileHash("b" * 64)
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator) as reporter,
        joined_worker(coordinator, announce=announcement("https://127.0.0.1:7998", files=(held, other))) as bad,
    ):
        await reporter.receive(Assign)
        await bad.receive(Assign)
        report = BadSource(worker_id=bad.worker_id, file=held)
        for _ in range(3):
            assert (await reporter.http.ask("POST", "/v1/worker/sources/bad", report)).status == 204
        request = SourcesRequest(files=(held, other))
        answer = (await reporter.http.ask("POST", "/v1/worker/sources", request)).read(SourcesAnswer)
        assert list(answer.sources) == [other]
        lines = [line for line in await coordinator.repository.audit_lines() if line.action == "bad_source"]
        assert [line.subject for line in lines] == [bad.worker_id]
        assert held in lines[0].details
        assert reporter.worker_id in lines[0].details


@pytest.mark.parametrize("case", ["unknown worker", "file not held", "oneself"])
async def test_a_bad_source_that_is_none_is_refused(tmp_path: Path, case: str) -> None:
    held = FileHash("a" * 64)
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator, announce=announcement(files=(held,))) as worker,
    ):
        await worker.receive(Assign)
        report = {
            "unknown worker": BadSource(worker_id=WorkerKey().worker_id, file=held),
            "file not held": BadSource(worker_id=worker.worker_id, file=FileHash("b" * 64)),
            "oneself": BadSource(worker_id=worker.worker_id, file=held),
        }[case]
        assert (await worker.http.ask("POST", "/v1/worker/sources/bad", report)).status == 404


async def test_only_the_tail_of_a_route_may_report_its_generation(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            joined_worker(coordinator) as worker,
            http_session(coordinator, key_of(coordinator, "client")) as client,
        ):
            assign = await worker.receive(Assign)
            while not assign.spans:
                assign = await worker.receive(Assign)
            await worker.hold(assign)
            await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].reported)
            answer = await client.ask(
                "POST", "/v1/routes", RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5)
            )  # type: ignore[arg-type]
            grant = answer.read(RouteGrant)
            report = GenerationReport(
                session_id=grant.session_id, n_prompt_tokens=3, n_completion_tokens=5, outcome="length"
            )
            async with joined_worker(coordinator, port=7998) as other:
                await other.receive(Assign)
                await other.send(msgspec.structs.replace(report, outcome="failed"))
                await other.send(msgspec.structs.replace(report, session_id=SessionId("f" * 32)))
                await other.send(Leaving(reason="done"))
                await eventually(lambda: coordinator.cluster.state.workers[other.worker_id].is_draining)
            stored = await coordinator.repository.generation(grant.session_id)
            assert stored is not None
            assert stored.outcome is None
            await worker.send(report)

            async def outcome() -> str | None:
                found = await coordinator.repository.generation(grant.session_id)
                return None if found is None else found.outcome

            assert await eventually_answered(outcome) == "length"


async def test_tickets_verify_with_the_key_granted_also_after_a_rotation(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            joined_worker(coordinator) as worker,
            http_session(coordinator, key_of(coordinator, "client")) as client,
        ):
            assign = await worker.receive(Assign)
            while not assign.spans:
                assign = await worker.receive(Assign)
            await worker.hold(assign)
            await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].reported)
            coordinator.authority.secrets.rotate_signing_key(datetime.now(UTC))
            body = RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5)  # type: ignore[arg-type]
            grant = (await client.ask("POST", "/v1/routes", body)).read(RouteGrant)
            ticket = verified_claims(
                grant.hops[0].ticket, Ticket, (bytes.fromhex(worker.grant.ticket_key),), now_s=0.0
            )
            assert ticket.worker_id == ticket.head == ticket.tail == worker.worker_id
            assert (ticket.previous, ticket.next, ticket.max_positions) == (None, None, 8)


async def test_a_plain_request_to_the_control_socket_is_refused(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        answer = await worker.http.ask("GET", "/v1/worker/control")
        assert answer.status == 400
        assert "WebSocket" in answer.read(ErrorAnswer).error.message


async def test_too_many_sources_at_once_are_refused(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        request = SourcesRequest(files=(FileHash("a"),) * 10_001)
        assert (await worker.http.ask("POST", "/v1/worker/sources", request)).status == 400


async def test_joining_needs_one_proof_header(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        assert (await http.ask("POST", "/v1/join", proven.body)).status == 401
        assert (await http.ask("GET", "/v1/worker/control", headers=bearer("nonsense"))).status == 401
