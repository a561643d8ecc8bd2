from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from coordinator.cluster import Cluster
from coordinator.histories import SAMPLE_S, Histories, quantile
from coordinator.policy.state import PolicySettings
from coordinator.running_generations import RunningGenerations
from coordinator.stored_rows import StoredGeneration
from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.ids import BlockRange, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.rest import RouteGrant, RouteHop, RouteRequest
from tests.support.clocks import Clock

WORKER = WorkerId("w-1")


def ended(seconds: float, n_tokens: int, outcome: str = "stop") -> StoredGeneration:
    started = datetime(2026, 11, 1, tzinfo=UTC)
    return StoredGeneration(
        session_id=SessionId("s"),
        key_id=KeyId("k"),
        model=ModelName("m"),
        revision=Revision("r"),
        route=((WORKER, 0, 1),),
        n_prompt_tokens=10,
        max_tokens=100,
        started_at=started,
        n_completion_tokens=n_tokens,
        outcome=outcome,
        finished_at=started + timedelta(seconds=seconds),
        continues=None,
    )


def granted(session_id: str, worker_id: WorkerId = WORKER) -> RouteGrant:
    hop = RouteHop(worker_id=worker_id, url="", blocks=BlockRange(0, 1), precision="float32", ticket="a secret")
    return RouteGrant(
        session_id=SessionId(session_id),
        model=ModelName("m"),
        revision=Revision("r"),
        hops=(hop,),
        attach_ticket="",
        expires_in_s=TICKET_LIFE_S,
    )


def test_what_tails_report_is_counted_when_it_comes_and_once() -> None:
    clock = Clock(1e9)
    cluster = Cluster(None, PolicySettings(), clock)  # type: ignore[arg-type]  # nothing is saved here
    histories = Histories(cluster, RunningGenerations(), lambda: 3)
    assert histories.sample().values["tokens_out_per_s"] is None, "nobody knows since when"
    for seconds in (1.0, 2.0, 4.0):
        histories.take_finished(ended(seconds, 20))
    histories.take_finished(ended(9.0, 5, "failed"))
    clock.now_s += SAMPLE_S
    values = histories.sample().values
    assert values["tokens_in_per_s"] == 40 / SAMPLE_S
    assert values["tokens_out_per_s"] == 65 / SAMPLE_S
    assert (values["generation_p50_s"], values["generation_p95_s"], values["token_p50_s"]) == (2.0, 4.0, 0.1)
    assert (values["failed_per_min"], values["n_waiting"]) == (60 / SAMPLE_S, 3.0)
    clock.now_s += SAMPLE_S
    values = histories.sample().values
    assert (values["tokens_out_per_s"], values["generation_p50_s"]) == (0.0, None)
    assert histories.of_cluster("hour").series["tokens_out_per_s"][-2:] == [65 / SAMPLE_S, 0.0]
    assert quantile([], 0.5) is None


def test_what_the_tail_measured_counts_rather_than_the_whole_generation() -> None:
    clock = Clock(1e9)
    histories = Histories(Cluster(None, PolicySettings(), clock), RunningGenerations(), lambda: 0)  # type: ignore[arg-type]
    histories.take_finished(ended(8.0, 4), 0.25, 0.5)
    histories.take_finished(ended(8.0, 1), 0.75, None)
    histories.take_finished(replace(ended(8.0, 4), continues=SessionId("before")), 5.0, 0.5)
    values = histories.sample().values
    assert (values["first_token_p50_s"], values["first_token_p95_s"]) == (0.75, 0.75)
    assert (values["token_p50_s"], values["token_p95_s"]) == (0.5, 0.5)


def test_a_generation_runs_until_it_is_reported_continued_or_can_run_no_more() -> None:
    running, wanted = RunningGenerations(), RouteRequest(model=ModelName("m"), n_prompt_tokens=1, max_tokens=2)
    other = WorkerId("w-2")
    for name in ("a", "b", "c"):
        running.take(granted(name), wanted, KeyId("k"), 100.0)
    running.take(granted("d", other), wanted, KeyId("k"), 200.0)
    goes_on = RouteRequest(model=ModelName("m"), n_prompt_tokens=1, max_tokens=2, continues=SessionId("a"))
    running.take(granted("a2", other), goes_on, KeyId("k"), 200.0)
    running.ended(SessionId("b"))
    assert [one.session_id for one in running.newest(10)] == ["a2", "d", "c"]
    assert [one.session_id for one in running.newest(2)] == ["a2", "d"]
    assert "a secret" not in repr(list(running.newest(10)))
    running.forget(300.0, frozenset())
    assert len(running) == 3
    running.forget(300.0, {other})
    assert [one.session_id for one in running.newest(10)] == ["c"]
    running.forget(101.0 + TICKET_LIFE_S, frozenset())
    assert len(running) == 0
