"""When a span that failed is tried again, and what is said of it."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from coordinator.policy.views import worker_info
from protocol.control_messages import SpanAssignment
from protocol.errors import BrigadeError, ConfigError, OverloadedError, UnreachableError, UntrustedFileError
from protocol.ids import BlockRange, ModelName, Revision
from tests.support.tiny_models import N_BLOCKS
from tests.support.waiting import eventually
from tests.worker.test_app import cluster
from worker.span_failures import SpanFailures

SPAN = SpanAssignment(model=ModelName("m"), revision=Revision("r"), blocks=BlockRange(0, 4))
OTHER = SpanAssignment(model=ModelName("m"), revision=Revision("r"), blocks=BlockRange(0, 3))


def failures() -> SpanFailures:
    return SpanFailures(random.Random(1))


@pytest.mark.parametrize("kind", [ConfigError, UntrustedFileError])
def test_what_would_fail_the_same_way_is_not_loaded_again_until_something_changes(kind: type[BrigadeError]) -> None:
    known = failures()
    said = known.failed(SPAN, kind("--precision int8: 0 of 9 weights"), 100.0, while_loading=True)
    assert said.startswith("--precision int8: 0 of 9 weights; next: start the worker with fewer blocks (--blocks)")
    assert known.retry_at_s == {SPAN: math.inf}
    known.assigned((SPAN, OTHER))
    assert known.retry_at_s == {SPAN: math.inf}, "other spans change nothing for this one"
    known.assigned((OTHER,))
    known.assigned((SPAN,))
    assert known.retry_at_s == {}, "it was taken away, and given again"


def test_a_span_without_room_waits_for_another_assignment() -> None:
    known = failures()
    known.refused(SPAN)
    assert known.retry_at_s == {SPAN: math.inf}
    known.assigned((SPAN,))
    assert known.retry_at_s == {}, "what else is held may be less"


def test_a_device_without_memory_is_asked_again_seldom() -> None:
    known = failures()
    said = known.failed(SPAN, OverloadedError("no memory"), 100.0, while_loading=True)
    assert "next: try again, for the 2. time, in 600 s: free memory, or start the worker with fewer" in said
    assert known.retry_at_s == {SPAN: 700.0}


@pytest.mark.parametrize("kind", [UnreachableError, ConfigError, OverloadedError])
def test_what_may_pass_is_tried_again_within_a_minute(kind: type[BrigadeError]) -> None:
    known = failures()
    for n in range(2, 12):
        said = known.failed(SPAN, kind("away"), 100.0, while_loading=False)
        assert f"try again, for the {n}. time, in" in said
        assert 100.5 <= known.retry_at_s[SPAN] <= 160.5
    known.succeeded(SPAN)
    assert known.retry_at_s == {}


async def test_a_worker_pinned_to_what_its_precision_cannot_hold_tries_once_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as it:
        await it.add_model("narrow", "gpt2")
        worker = await it.join(
            precision="int4", pinned_model=ModelName("narrow"), pinned_blocks=BlockRange(0, N_BLOCKS)
        )
        await eventually(lambda: [s for s in worker.holdings.statuses if s.state == "failed"])
        (status,) = worker.holdings.statuses
        assert "--precision int4: " in status.reason
        assert "; next: start the worker with fewer blocks (--blocks) or another --precision" in status.reason
        known = it.coordinator.cluster
        await eventually(lambda: known.state.workers[worker.worker_id].reported[0].state == "failed")
        info = worker_info(known.state, worker.worker_id, known.now_s())
        assert "blocks 0:4 of narrow failed: --precision int4" in info.reason
