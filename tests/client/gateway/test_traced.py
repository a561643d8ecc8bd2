from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from client.gateway.traced import TIMING_HEADER, TRACE_HEADER
from protocol.tracing import new_trace, trace_from_text
from tests.support.gateways import ENDS, ServedGateway

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PATH = "/v1/chat/completions"


def asked(**more: Any) -> dict[str, Any]:
    hi = [{"role": "user", "content": "hi"}]
    return {"model": "tiny", "messages": hi, "max_tokens": 4, "temperature": 0, "logit_bias": ENDS} | more


def figures(text: str) -> dict[str, float]:
    """Of a Server-Timing, by name."""
    return {part.split(";")[0]: float(part.rsplit("dur=", maxsplit=1)[1]) for part in text.split(", ")}


async def test_an_answer_names_its_trace_and_where_the_time_went(served: ServedGateway) -> None:
    trace = new_trace()
    with capture_logs() as logs:
        answer = await served.post(PATH, asked(n=2), headers={"traceparent": trace.traceparent()})
    responded = trace_from_text(answer.headers[TRACE_HEADER])
    assert responded is not None
    assert responded.trace_id == trace.trace_id
    assert responded.span_id != trace.span_id
    took = figures(answer.headers[TIMING_HEADER])
    phases = sum(took[name] for name in ("prepare", "route", "open", "prefill", "decode"))
    assert phases == pytest.approx(took["total"], abs=0.5)  # each is rounded to a tenth
    in_stages = (
        took["stage1"] + took["stage2"]
    )  # longer than decoding where the tail's clock ran beside the client's
    assert took["wire"] == pytest.approx(max(0.0, took["decode"] - in_stages), abs=0.5)
    ended = [line for line in logs if line["event"] == "session_ended"]
    assert [line["trace_id"] for line in ended] == [trace.trace_id] * len(ended)


async def test_a_stream_says_it_in_a_comment_and_ends_as_ever(served: ServedGateway) -> None:
    answer = await served.post(PATH, asked(stream=True))
    comments = [line for line in answer.body.decode().split("\n") if line.startswith(f": {TIMING_HEADER}: ")]
    assert len(comments) == 1
    assert figures(comments[0].split(": ", maxsplit=2)[2])["total"] > 0
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert TIMING_HEADER not in answer.headers
    assert trace_from_text(answer.headers[TRACE_HEADER]) is not None


async def test_what_is_no_trace_is_passed_over_and_errors_have_one_too(served: ServedGateway) -> None:
    nonsense = {"traceparent": "00-nonsense"}
    answer = await served.post(PATH, asked(model="none"), headers=nonsense)
    assert answer.status == 404
    assert trace_from_text(answer.headers[TRACE_HEADER]) is not None
    assert TIMING_HEADER not in answer.headers
