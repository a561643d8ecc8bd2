"""One trace through all programs: what logs name, what a generation says of its time, what a collector is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from client.results import Generation
from client.timings import Timings
from protocol.span_export import span_export
from protocol.spans import NO_SPANS
from protocol.tracing import new_trace, within
from tests.support.otlp_receiver import otlp_receiver
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster, packed_tiny, whole_cluster

PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 24


async def generated(cluster: WholeCluster) -> tuple[Generation, float]:
    """An answer, and the seconds from the call to its last token as its caller sees them."""
    now_s = asyncio.get_running_loop().time
    last_s = 0.0
    async with cluster.client() as client:
        began_s = now_s()
        async with client.stream("tiny", PROMPT, max_tokens=N_TOKENS, temperature=0.0) as pieces:
            async for _ in pieces:
                last_s = now_s()
        return pieces.result, last_s - began_s


def ended_in(logs: Sequence[Any]) -> list[Any]:
    """What workers have logged of the ends of sessions."""
    return [line for line in logs if line["event"] == "session_ended"]


def check_sums(timings: Timings, wall_s: float) -> None:
    phases = (timings.prepare_s, timings.route_s, timings.open_s, timings.prefill_s, timings.decode_s)
    assert min(phases) >= 0
    assert sum(phases) == pytest.approx(timings.total_s)
    assert timings.total_s == pytest.approx(wall_s, rel=0.2)
    in_stages = sum(stage.decode_s for stage in timings.stages)
    # a busy machine's clocks: decoding that the workers began before the client had the first token
    assert timings.wire_s == pytest.approx(max(0.0, timings.decode_s - in_stages))
    assert timings.wire_s < timings.decode_s
    for stage in timings.stages:
        assert min(stage.prefill_compute_s, stage.decode_compute_s, stage.decode_queue_s) > 0
    head, tail = timings.stages
    assert head.decode_sampling_s == 0 < tail.decode_sampling_s


@pytest.mark.timeout(120)
async def test_a_generation_is_one_trace_in_logs_in_its_timings_and_at_a_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = packed_tiny(tmp_path, "llama", eos_token_id=None)
    trace = new_trace()
    async with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        async with whole_cluster(tmp_path) as cluster:
            await cluster.add_model("tiny", packed)
            await cluster.join("head", "0:2")
            await cluster.join("tail", "2:4")
            await cluster.until_ready()
            with capture_logs() as logs:
                with within(trace):
                    got, wall_s = await generated(cluster)
                other, _ = await generated(cluster)
                await eventually(lambda: len(ended_in(logs)) == 4)  # a moment after the client has its last token
    assert got.trace_id == trace.trace_id != other.trace_id
    assert got.timings is not None
    assert [(stage.start, stage.end) for stage in got.timings.stages] == [(0, 2), (2, 4)]
    check_sums(got.timings, wall_s)
    assert sorted(line["trace_id"] for line in ended_in(logs)) == sorted([got.trace_id, other.trace_id] * 2)

    spans = {(span.service, span.name): span for span in receiver.spans if span.trace_id == trace.trace_id}
    generation = spans["brigade-client", "text_completion tiny"]
    assert generation.cause == trace.span_id
    assert generation.attributes["gen_ai.usage.output_tokens"] == N_TOKENS
    assert generation.seconds >= got.timings.total_s
    route = spans["brigade-coordinator", "POST /v1/routes"]
    sessions = [span for span in receiver.spans if span.name == "session" and span.trace_id == trace.trace_id]
    assert {span.attributes["brigade.blocks"] for span in sessions} == {"0:2", "2:4"}
    for span in (route, *sessions):
        assert (span.cause, span.is_error) == (generation.span_id, False)
        assert span.seconds > 0
    assert not any("text" in name or "prompt" in name for span in receiver.spans for name in span.attributes)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_BSP_MAX_QUEUE_SIZE": "1"},
    ],
)
async def test_without_a_collector_that_can_be_used_there_is_nothing_to_send(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with span_export("client") as spans:
        assert spans is NO_SPANS
