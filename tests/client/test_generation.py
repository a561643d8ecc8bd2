from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.results import Progress
from protocol.errors import (
    BrigadeError,
    ConflictError,
    ContextExceededError,
    DeadlineExceededError,
    ErrorBody,
    HopLostError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
)
from protocol.frames import encode_frame
from protocol.ids import Revision, SessionId, WorkerId
from protocol.messages import CloseSession, SamplingParams, Token
from protocol.rest import HopFailure
from tests.support.generating import ANSWER, Run, assert_whole, generated
from tests.support.scripted_cluster import Script, scripted_cluster
from tests.support.tiny_tokenizer import ids_of

OVERLOADED = ErrorBody(code="overloaded", message="12 of 12 sessions")


async def test_a_model_replaced_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        with pytest.raises(ConflictError, match="replaced"):
            await generated(cluster, revision=Revision("9" * 64))
        assert cluster.latest.opening is None


async def test_a_deadline_that_is_over_stops_before_the_route(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        with pytest.raises(DeadlineExceededError):
            await generated(cluster, timeout_s=0.0)


async def test_a_stop_string_in_the_last_token_is_a_stop_and_nobody_is_told(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(answer=tuple(ids_of("ab!")), finish="length")
        run = await generated(cluster, stops=("!",))
        assert ("".join(run.texts), run.result.finish_reason) == ("ab", "stop")
        assert cluster.latest.closed == {}


async def test_held_back_text_comes_with_the_last_token(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(answer=(*ids_of("aX"), ids_of("\N{EURO SIGN}")[0]), finish="length")
        run = await generated(cluster, stops=("XY",))
        assert run.texts == ["a", "", "X\ufffd"]
        assert run.result.text == "aX\ufffd"


async def test_a_tail_that_never_ends_the_answer_is_stopped_at_its_last_token(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(answer=ANSWER[:3], stop_short=True)
        run = await generated(cluster, sampling=SamplingParams(max_tokens=3))
        assert (run.result.token_ids, run.result.finish_reason) == (ANSWER[:3], "length")
        await cluster.until_closed("cancelled")


FAULTS = {
    "the tail drops its connection": Script(drops_connection=True),
    "the head drops its connection": Script(head_drops_connection=True),
    "the head says so": Script(head_ends_with=OVERLOADED),
    "the tail says so": Script(ends_with=OVERLOADED),
    "the head loses the next hop": Script(head_ends_with=ErrorBody(code="hop_lost", message="gone")),
    "an old epoch": Script(ends_with=ErrorBody(code="stale_epoch", message="position 7 of 9")),
    "a worker drains": Script(ends_with=ErrorBody(code="draining", message="stopping")),
    "a session that is not there": Script(ends_with=ErrorBody(code="not_found", message="no such session")),
    "a ticket that is refused": Script(head_ends_with=ErrorBody(code="unauthenticated", message="no")),
    "a deadline of the worker's own": Script(ends_with=ErrorBody(code="deadline_exceeded", message="idle")),
    "an error of a newer version": Script(ends_with=ErrorBody(code="brand_new", message="something")),
    "garbage": Script(raw_at_end=b"nonsense"),
    "an empty frame": Script(raw_at_end=b""),
    "another's message": Script(raw_at_end=encode_frame(CloseSession(session_id=SessionId("s-1"), reason="lost"))),
    "the same token twice": Script(indexes=(0, 0), answer=ANSWER[:2]),
    "a token left out": Script(indexes=(0, 2), answer=ANSWER[:2]),
    "an id that the model lacks": Script(answer=(*ANSWER[:2], 100_000), stop_short=True),
    "a refused handshake": Script(handshake_status=503),
    "another version's handshake": Script(handshake_status=426),
    "a head that can't be dialled": Script(worker_urls={0: "https://127.0.0.1:1"}),
    "a tail that can't be dialled": Script(worker_urls={1: "https://127.0.0.1:1"}),
    "an address without TLS": Script(worker_urls={1: "http://127.0.0.1:1"}),
}
FINAL = Script(finish="length")


def n_tokens_before(script: Script) -> tuple[int, ...]:
    """How many good tokens may come before the fault."""
    if script.answer:
        return (1,) if script.indexes else (2,)
    begins = script.head_ends_with or script.head_drops_connection or script.handshake_status or script.worker_urls
    return (0,) if begins else (0, 1, 7)


@pytest.mark.parametrize(
    ("fault", "n_tokens"), [(name, n) for name, script in FAULTS.items() for n in n_tokens_before(script)]
)
async def test_goes_on_with_the_next_token_after_any_fault_of_a_worker(
    tmp_path: Path, fault: str, n_tokens: int
) -> None:
    script = FAULTS[fault]
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [script if script.answer else replace(script, answer=ANSWER[:n_tokens])]
        cluster.script = replace(FINAL, answer=ANSWER[n_tokens:])
        run = await generated(cluster)
        assert_whole(run, cluster, failovers=1)
        first, second = cluster.route_requests
        assert (first.exclude, first.continues, first.failure) == ((), None, None)
        failure = second.failure
        assert failure is not None
        assert second.exclude == (failure.worker_id,)
        assert len(run.notices) == 1
        assert f"after {n_tokens} token" in run.notices[0]
        assert failure.worker_id in run.notices[0]


async def test_twice_in_a_row_and_in_the_middle_of_a_character(tmp_path: Path) -> None:
    in_euro = len(ids_of("Paris ")) + 1
    in_rocket = in_euro + 4
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [
            Script(answer=ANSWER[:in_euro], drops_connection=True),
            Script(head_drops_connection=True),
            Script(answer=ANSWER[in_euro:in_rocket], ends_with=OVERLOADED),
        ]
        cluster.script = replace(FINAL, answer=ANSWER[in_rocket:])
        run = await generated(cluster)
        assert_whole(run, cluster, failovers=3)
        assert "\ufffd" not in run.result.text


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
async def test_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    async with scripted_cluster(tmp_path, n_workers=1) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:cut], drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[cut:])
        assert_whole(await generated(cluster), cluster, failovers=1)


async def test_a_stop_string_that_began_before_the_failover_is_found(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=tuple(ids_of("one EN")), drops_connection=True)]
        cluster.script = Script(answer=tuple(ids_of("D two")), finish="length")
        run = await generated(cluster, stops=("END",))
        assert ("".join(run.texts), run.result.finish_reason) == ("one ", "stop")
        await cluster.until_closed("cancelled")


async def test_the_failed_session_is_closed_as_failed_and_continued(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:2], ends_with=OVERLOADED)]
        cluster.script = replace(FINAL, answer=ANSWER[2:])
        await generated(cluster)
        first, second = cluster.seen.values()
        tail = cluster.workers[1][0]
        await cluster.until(lambda: set(first.closed.values()) == {"failed"} and len(first.closed) == 2)
        assert second.closed == {}
        assert cluster.route_requests[1].continues == "s-1"
        assert cluster.failures == [None, HopFailure(worker_id=tail, noticed_by=tail, code="overloaded")]


async def test_of_sessions_that_no_head_heard_of_the_failure_is_told_and_a_cache_is_kept_in_mind(
    tmp_path: Path,
) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        nobody = Script(worker_urls={0: "https://127.0.0.1:1"})
        cluster.attempts = [nobody, Script(answer=ANSWER[:2], drops_connection=True), nobody]
        cluster.script = replace(FINAL, answer=ANSWER[2:])
        assert_whole(await generated(cluster), cluster, failovers=3)
        assert [request.continues for request in cluster.route_requests] == [None, "s-1", "s-2", "s-2"]
        head = cluster.workers[0][0]
        assert cluster.failures[1] == HopFailure(worker_id=head, code="hop_lost")
        assert cluster.failures[3] == HopFailure(worker_id=head, code="hop_lost", session_id=SessionId("s-3"))


async def test_a_neighbours_word_blames_only_workers_of_the_route(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path, n_workers=3) as cluster:
        head, middle, _ = (worker_id for worker_id, _ in cluster.workers)
        lost = Script(head_ends_with=ErrorBody(code="hop_lost", message="gone"))
        cluster.attempts = [replace(lost, blames=middle), replace(lost, blames=WorkerId("w-" + "q" * 26))]
        cluster.script = replace(FINAL, answer=ANSWER)
        assert_whole(await generated(cluster), cluster, failovers=2)
        assert cluster.failures[1:] == [
            HopFailure(worker_id=middle, noticed_by=head, code="hop_lost"),
            HopFailure(worker_id=head, noticed_by=head, code="hop_lost"),
        ]
        assert [request.exclude for request in cluster.route_requests] == [(), (middle,), (middle, head)]


@pytest.mark.parametrize("kind", [InvalidRequestError, ContextExceededError])
async def test_what_is_wrong_with_the_request_itself_ends_it_at_once(
    tmp_path: Path, kind: type[BrigadeError]
) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(ends_with=ErrorBody(code=kind.code, message="token 3 of 270"))
        with pytest.raises(kind, match="token 3"):
            await generated(cluster)
        assert len(cluster.route_requests) == 1


async def test_a_spent_budget_says_what_happened_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.failover.MAX_FRUITLESS_ATTEMPTS", 3)
    async with scripted_cluster(tmp_path) as cluster:
        (head, _), (tail, _) = cluster.workers
        lost = Script(head_drops_connection=True)
        cluster.attempts = [lost, Script(answer=ANSWER[:1], drops_connection=True), lost]
        cluster.script = Script(ends_with=replaced(OVERLOADED, "x" * 5000))
        run = Run(Progress(0.0))
        with pytest.raises(OverloadedError) as raised:
            await generated(cluster, run=run)
        message = raised.value.message
        assert message.startswith(
            f"3 routes in a row failed before a new token came (hop_lost of {head}, overloaded of {tail}, "
            f"overloaded of {tail}); the last: xxx"
        )
        assert len(message) < 600
        assert (run.result.token_ids, run.result.failovers) == (ANSWER[:1], 4)


def replaced(error: ErrorBody, message: str) -> ErrorBody:
    return ErrorBody(code=error.code, message=message)


# ---------------------------------------------------------------- standing still


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a second: those who are to go on may be slow, too, on a busy machine."""
    for name in ("FIRST_TOKEN_S", "SHORTEST_STALL_S", "LONGEST_STALL_S"):
        monkeypatch.setattr(f"client.pace.{name}", 1.0)


@pytest.mark.parametrize("n_tokens", [0, 3])
async def test_a_route_that_stands_still_is_left_and_nobody_is_blamed(
    tmp_path: Path, impatient: None, n_tokens: int
) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:n_tokens], stop_short=True)]
        cluster.script = replace(FINAL, answer=ANSWER[n_tokens:])
        run = await generated(cluster)
        assert_whole(run, cluster, failovers=1)
        assert cluster.failures == [None, HopFailure(code="stalled")]
        assert cluster.route_requests[1].exclude == ()
        assert run.notices[0].startswith("the route stood still after")
        first = cluster.seen[SessionId("s-1")]
        await cluster.until(lambda: set(first.closed.values()) == {"failed"})


async def test_what_a_worker_says_that_wakes_up_later_does_no_harm(tmp_path: Path, impatient: None) -> None:
    async with scripted_cluster(tmp_path) as cluster:

        async def awake() -> None:
            socket = cluster.seen[SessionId("s-1")].tail_socket
            assert socket is not None
            for index, token_id in enumerate(ANSWER[2:]):
                late = Token(session_id=SessionId("s-1"), index=2 + index, token_id=token_id)
                await socket.send_bytes(encode_frame(late))

        cluster.attempts = [Script(answer=ANSWER[:2], stop_short=True)]
        cluster.script = Script(answer=ANSWER[2:5], on_answered=awake, ends_with=OVERLOADED)
        cluster.attempts += [cluster.script]
        cluster.script = replace(FINAL, answer=ANSWER[5:])
        assert_whole(await generated(cluster), cluster, failovers=2)


async def test_the_sampling_is_the_same_but_for_its_length(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:4], drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[4:])
        sampling = SamplingParams(max_tokens=50, temperature=0.7, seed=11, top_k=5, repetition_penalty=1.1)
        await generated(cluster, sampling=sampling)
        first, second = (seen.attached for seen in cluster.seen.values())
        assert first is not None
        assert second is not None
        assert (first.sampling, second.sampling) == (
            sampling,
            SamplingParams(max_tokens=46, temperature=0.7, seed=11, top_k=5, repetition_penalty=1.1),
        )


async def test_penalties_go_on_where_the_answer_is_and_old_workers_are_not_asked(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:4], drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[4:])
        await generated(cluster, sampling=SamplingParams(max_tokens=50, presence_penalty=0.5))
        attached = [seen.attached for seen in cluster.seen.values() if seen.attached is not None]
        assert [message.sampling.n_answered for message in attached] == [0, 4]
        assert [request.newest_sampling for request in cluster.route_requests] == [True, True]


async def test_a_protocol_error_at_every_worker_is_what_it_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.failover.MAX_FRUITLESS_ATTEMPTS", 2)
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(raw=b"nonsense", stop_short=True)
        with pytest.raises(ProtocolError):
            await generated(cluster)


async def test_a_worker_that_is_gone_for_good_is_a_lost_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.failover.MAX_FRUITLESS_ATTEMPTS", 2)
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(worker_urls={1: "https://127.0.0.1:1"})
        with pytest.raises(HopLostError, match="2 routes in a row"):
            await generated(cluster)
