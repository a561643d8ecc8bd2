from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from protocol.control_messages import Assign, SpanAssignment
from protocol.ids import BlockRange, FileHash, ModelName, Revision, WorkerId
from protocol.messages import PROTOCOL_VERSION
from worker.holdings import Holdings
from worker.screening import Screening
from worker.steps import LoadedSpan, SpanKey

MODEL, REVISION = ModelName("m"), Revision("r" * 64)


def assignment(epoch: int, *blocks: BlockRange) -> Assign:
    spans = tuple(SpanAssignment(model=MODEL, revision=REVISION, blocks=b) for b in blocks)
    return Assign(epoch=epoch, spans=spans, reason="test")


def loaded(start: int, end: int) -> LoadedSpan:
    key = SpanKey(revision=REVISION, blocks=BlockRange(start, end), precision="float32")
    return LoadedSpan(
        key=key,
        n_blocks=8,
        n_weight_bytes=1,
        kv_precision="int8",
        kv_bytes_by_block=(1,) * (end - start),
        hidden_bytes=1,
        load_s=0.0,
    )


async def test_the_smallest_span_that_contains_the_blocks_is_used() -> None:
    holdings = Holdings()
    for span in (loaded(0, 8), loaded(2, 6)):
        holdings.add(MODEL, span)
    assert holdings.span_for(MODEL, REVISION, BlockRange(3, 5)) == loaded(2, 6).key
    assert holdings.span_for(MODEL, REVISION, BlockRange(1, 5)) == loaded(0, 8).key
    assert holdings.span_for(MODEL, REVISION, BlockRange(1, 9)) is None
    assert holdings.span_for(ModelName("other"), REVISION, BlockRange(3, 5)) is None
    assert holdings.span_for(MODEL, Revision("0" * 64), BlockRange(3, 5)) is None


async def test_it_says_how_long_a_session_can_be_once_all_is_loaded() -> None:
    holdings = Holdings()
    holdings.assign(assignment(1, BlockRange(0, 4), BlockRange(4, 8)))
    first, second = holdings.wanted
    holdings.add(MODEL, loaded(0, 4))
    holdings.set_status(first, "ready", "")
    assert holdings.longest_sessions(7001) == {}, "what is loaded besides may take of it, or give it back"
    holdings.add(MODEL, loaded(4, 8))
    holdings.set_status(second, "ready", "")
    assert holdings.longest_sessions(7001) == {MODEL: 1750}, "its last span hands nothing on, so it keeps less"
    holdings.retire(loaded(4, 8).key)
    assert holdings.longest_sessions(7001) == {MODEL: 1400}


async def test_a_second_name_of_the_same_revision_shares_the_span() -> None:
    holdings = Holdings()
    holdings.add(MODEL, loaded(0, 4))
    holdings.add_name(loaded(0, 4).key, ModelName("alias"))
    holdings.add_name(loaded(0, 4).key, ModelName("alias"))
    assert holdings.span_for(ModelName("alias"), REVISION, BlockRange(0, 4)) == loaded(0, 4).key
    assert holdings.held[0].models == (MODEL, "alias")


async def test_a_retired_span_takes_no_new_sessions_until_restored() -> None:
    holdings = Holdings()
    key = loaded(0, 4).key
    holdings.add(MODEL, loaded(0, 4))
    holdings.retire(key)
    assert holdings.span_for(MODEL, REVISION, BlockRange(0, 4)) is None
    holdings.restore(key)
    assert holdings.span_for(MODEL, REVISION, BlockRange(0, 4)) == key
    holdings.remove(key)
    holdings.remove(key)
    assert holdings.held == ()


async def test_a_stale_assignment_changes_nothing() -> None:
    holdings = Holdings()
    assert holdings.assign(assignment(3, BlockRange(0, 2)))
    assert not holdings.assign(assignment(3, BlockRange(2, 4)))
    assert not holdings.assign(assignment(2, BlockRange(2, 4)))
    assert (holdings.epoch, holdings.wanted[0].blocks) == (3, BlockRange(0, 2))


async def test_a_new_assignment_keeps_the_state_of_what_stays() -> None:
    holdings = Holdings()
    holdings.assign(assignment(1, BlockRange(0, 2), BlockRange(2, 4)))
    holdings.set_status(holdings.wanted[0], "ready", "", 1.0)
    gone = holdings.wanted[1]
    holdings.assign(assignment(2, BlockRange(4, 6), BlockRange(0, 2)))
    assert [(s.blocks.start, s.state) for s in holdings.statuses] == [(4, "downloading"), (0, "ready")]
    assert not holdings.set_status(gone, "failed", "too late")
    assert holdings.report.epoch == 2


async def test_changes_wake_who_waits_for_them() -> None:
    holdings = Holdings()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(holdings.changed_since(holdings.version))
        await asyncio.sleep(0)
        holdings.set_files([])  # as it was: nobody is told
        assert not waiting.done()
        holdings.set_files([FileHash("a" * 64), FileHash("a" * 64)])
    assert waiting.result() == holdings.version
    assert holdings.files == ("a" * 64,)


async def test_a_status_said_again_is_no_change() -> None:
    holdings = Holdings()
    holdings.assign(assignment(1, BlockRange(0, 2)))
    assert holdings.set_status(holdings.wanted[0], "loading", "x")
    version = holdings.version
    assert not holdings.set_status(holdings.wanted[0], "loading", "x")
    assert holdings.version == version


async def test_a_span_whose_sessions_run_one_at_a_time_says_so() -> None:
    holdings = Holdings()
    bare = replace(loaded(5, 8), unconstrained_because="llguidance isn't installed there")
    for span in (loaded(0, 2), replace(loaded(2, 4), unbatched_because="it attends by code of its own"), bare):
        holdings.add(MODEL, span)
    assert holdings.note_of(loaded(0, 2).key) == ""
    assert holdings.note_of(bare.key) == "holds no answer to a constraint: llguidance isn't installed there"
    on, off = Screening(is_on=True), Screening(off_because="it isn't quicker here")
    for end, screening, said in (
        (7, on, "its head looks closely at few tokens"),
        (6, off, "its head computes every token's logit: it isn't quicker here"),
    ):
        span = replace(loaded(5, end), screening=screening)
        holdings.add(MODEL, span)
        assert holdings.note_of(span.key) == said
    note = holdings.note_of(loaded(2, 4).key)
    assert note == "its sessions run one at a time: it attends by code of its own"
    wanted = assignment(1, BlockRange(2, 4))
    holdings.assign(wanted)
    holdings.set_ready(wanted.spans[0], loaded(2, 4).key)
    assert holdings.statuses[0].note == note


@pytest.mark.parametrize(("by_block", "said"), [((8, 8), ()), ((8, 24), (8, 24))])
async def test_what_a_position_takes_is_said_of_blocks_that_differ_in_it(
    by_block: tuple[int, ...], said: tuple[int, ...]
) -> None:
    holdings, span = Holdings(), replace(loaded(2, 4), kv_bytes_by_block=by_block)
    holdings.assign(assignment(1, BlockRange(2, 4)))
    holdings.add(MODEL, span)
    assert holdings.set_ready(holdings.wanted[0], span.key)
    assert not holdings.set_ready(holdings.wanted[0], span.key), "no news"
    (status,) = holdings.statuses
    assert (status.state, status.progress, status.kv_bytes_by_block) == ("ready", 1.0, said)


async def test_what_is_wanted_no_longer_is_said_to_be_leaving_until_it_is_retired() -> None:
    holdings = Holdings()
    old, new = assignment(1, BlockRange(0, 4)), assignment(2, BlockRange(4, 8))
    holdings.assign(old)
    holdings.add(MODEL, loaded(0, 4))
    assert holdings.leaving == ()
    holdings.assign(new)
    assert holdings.leaving == old.spans
    holdings.retire(loaded(0, 4).key)
    assert holdings.leaving == ()


async def test_int8_that_a_neighbour_is_too_old_for_is_said_once_and_stands_in_the_status_until_it_isnt() -> None:
    holdings, old = Holdings("int8"), WorkerId("w-old")
    holdings.assign(assignment(1, BlockRange(0, 4), BlockRange(4, 8)))
    for span, held in zip(holdings.wanted, (loaded(0, 4), loaded(4, 8)), strict=True):
        holdings.add(MODEL, replace(held, hidden_bytes=64 * 4))
        holdings.set_ready(span, held.key)
    assert holdings.neighbour_met(old, PROTOCOL_VERSION) == ""
    version = holdings.version

    line = holdings.neighbour_met(old, "1.1")
    assert line.startswith(
        "WARNING: --wire int8 does nothing towards a neighbour: worker w-old speaks protocol 1.1"
    )
    assert holdings.version > version, "the coordinator is told"
    first, last = holdings.statuses
    assert first.note == "sends some hidden states as computed: " + line.split("neighbour: ")[1]
    assert (first.state, last.note) == ("ready", ""), "the last blocks hand nothing on"
    assert holdings.neighbour_met(old, "1.1") == ""

    assert holdings.neighbour_met(old, PROTOCOL_VERSION) == ""
    assert holdings.statuses[0].note == ""
    assert Holdings("auto").neighbour_met(old, "1.1") == "", "nobody asked for it"


async def test_of_many_old_neighbours_the_latest_are_named() -> None:
    holdings = Holdings("int8")
    holdings.add(MODEL, replace(loaded(0, 4), hidden_bytes=64 * 4))
    for index in range(20):
        assert holdings.neighbour_met(WorkerId(f"w{index}"), "1.1")
    note = holdings.note_of(loaded(0, 4).key)
    assert (note.count("upgrade it"), "w19" in note, "w11 " in note) == (8, True, False)


async def test_a_budget_that_hardly_holds_a_session_is_said_of_the_span_until_there_is_more() -> None:
    holdings, key = Holdings(), loaded(2, 4).key
    wanted = assignment(1, BlockRange(2, 4))
    holdings.assign(wanted)
    holdings.add(MODEL, loaded(2, 4))
    holdings.set_kv_budget(0)
    holdings.set_ready(wanted.spans[0], key)
    version = holdings.version
    assert "0 bytes for caches are room for 0 positions" in holdings.statuses[0].note
    assert holdings.statuses[0].state == "ready"
    holdings.set_kv_budget(10**9)
    assert holdings.statuses[0].note == ""
    assert holdings.version > version, "the coordinator is told"


def test_who_leaves_an_accelerator_unused_says_so_of_every_span() -> None:
    because = "this machine has an NVIDIA H100, but torch 2.9.0 is a build without CUDA"
    holdings = Holdings("int8", on_cpu_because=because)
    holdings.add(ModelName("m"), loaded(2, 4))
    (held,) = holdings.held
    assert holdings.note_of(held.loaded.key).startswith(
        f"on the CPU, many times slower than it could be: {because}"
    )
