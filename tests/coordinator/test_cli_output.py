from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group

from coordinator.cli_output import (
    coverage_text,
    model_table,
    plain_table,
    plan_table,
    print_status,
    printable,
    worker_table,
)
from protocol.cluster_rest import ClusterStatus, WorkerInfo
from protocol.control_messages import SpanStatus
from protocol.ids import BlockRange, CoordinatorId, ModelName, Revision, WorkerId
from protocol.plan_rest import LeftOut, ModelledSpeed, ModelPlan, PlanInfo, PlannedSpan
from protocol.rest import BlockCoverage, ModelInfo

COVERAGE = (
    BlockCoverage(blocks=BlockRange(0, 10), n_workers=2),
    BlockCoverage(blocks=BlockRange(10, 30), n_workers=0),
)


def span(blocks: BlockRange, **fields: object) -> SpanStatus:
    return SpanStatus(model=ModelName("m"), revision=Revision("r"), blocks=blocks, reason="", **fields)  # type: ignore[arg-type]


WORKER = WorkerInfo(
    worker_id=WorkerId("w-abc"),
    hostname="box [bold]\x1b[31m",
    url="https://a:1",
    state="loading",
    reason="almost there",
    device="cpu",
    precision="float32",
    memory_bytes=1,
    spans=(span(BlockRange(0, 4), state="ready"), span(BlockRange(4, 9), state="downloading", progress=0.425)),
    n_sessions=3,
    free_kv_bytes=1,
    decode_s_per_block=0.1,
    last_seen_s_ago=1.4,
)
MODEL = ModelInfo(
    name=ModelName("m"),
    revision=Revision("f" * 64),
    state="incomplete",
    reason="blocks 10:30 are missing",
    architecture="LlamaForCausalLM",
    n_blocks=30,
    context_length=2048,
    size_bytes=3 * 2**30,
    is_chat=True,
    coverage=COVERAGE,
)


def shown(table: object, width: int = 250) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_worker_is_shown_with_what_it_holds() -> None:
    text = shown(worker_table((WORKER,)))
    assert "m 0:4, m 4:9 (downloading 42%)" in text
    assert "almost there" in text
    assert "box [bold] [31m" in text
    assert "\x1b" not in text


def test_a_worker_that_can_not_hold_its_blocks_is_shown_as_failed() -> None:
    failed = msgspec.structs.replace(WORKER, state="idle", spans=(span(BlockRange(0, 4), state="failed"),))
    assert " failed  m 0:4 (failed)" in " ".join(shown(worker_table((failed,))).split(" ")).replace("   ", "  ")
    assert " idle " in shown(worker_table((msgspec.structs.replace(WORKER, state="idle"),)))


def test_a_worker_whose_caches_are_of_another_precision_says_so() -> None:
    assert "cpu float32, caches int8" in shown(
        worker_table((msgspec.structs.replace(WORKER, kv_precision="int8"),))
    )
    assert "caches" not in shown(worker_table((WORKER,)))


def test_a_plan_is_shown_with_its_speeds_and_who_is_left_out() -> None:
    speed = ModelledSpeed(one_stream_tokens_per_s=20.0, many_streams_tokens_per_s=61.25)
    spans = (PlannedSpan(worker_id=WorkerId("w-abc"), hostname="box", blocks=BlockRange(0, 30), stage_s=0.05),)
    plan = PlanInfo(
        placement="balance",
        models=(ModelPlan(model=ModelName("m"), spans=spans, planned=speed, now=None),),
        left_out=(LeftOut(worker_id=WorkerId("w-far"), hostname="", reason="its hop costs too much"),),
        outlook="Nothing is moved: gain 7 %, which is under 20 %",
    )

    text = shown(plan_table(plan))
    assert "m, placed for balance: about 20.0 tokens/s for one stream, 61.2 for many" in text
    assert "as it is now: not all blocks are held" in text
    assert "0:30" in text
    assert "50.00" in text
    assert "w-far: its hop costs too much" in text
    assert "Nothing is moved: gain 7 %, which is under 20 %" in text


def test_ids_of_workers_are_short_for_people() -> None:
    worker_id = WorkerId("w-srdvisancluldnhoqvcjq55eie")
    reason = f"on {worker_id} (vm), blocks 0:20 are being loaded"
    for table in (
        worker_table((msgspec.structs.replace(WORKER, worker_id=worker_id, reason=reason),)),
        model_table((msgspec.structs.replace(MODEL, reason=reason),)),
    ):
        text = shown(table)
        assert worker_id not in text
        assert "on w-srdvisancl (vm)" in text


@pytest.mark.parametrize("width", [80, 160])
def test_tables_are_readable_in_a_narrow_terminal(width: int) -> None:
    worker = msgspec.structs.replace(
        WORKER, worker_id=WorkerId("w-srdvisancluldnhoqvcjq55eie"), hostname="box", spans=WORKER.spans[:1]
    )
    model = msgspec.structs.replace(MODEL, coverage=COVERAGE[:1])
    lines = shown(Group(worker_table((worker,)), model_table((model,))), width).splitlines()
    assert [line.split()[0] for line in lines] == ["worker", "w-srdvisancl", "w-srdvisancl:", "model", "m", "m:"]


def test_a_model_is_shown_with_its_gaps() -> None:
    text = shown(model_table((MODEL,)))
    assert coverage_text(COVERAGE) == "0:10 by 2, 10:30 by nobody"
    for part in ("0:10 by 2, 10:30 by nobody", "incomplete", "3.2 GB", "blocks 10:30 are missing"):
        assert part in text


def test_a_status_without_models_and_workers_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    status = ClusterStatus(
        coordinator_id=CoordinatorId("c-1"),
        version="0.1",
        url="https://a:1",
        database="sqlite",
        models=(),
        workers=(),
    )
    print_status(status)
    out = capsys.readouterr().out
    assert "can't be used" not in out
    print_status(msgspec.structs.replace(status, moving="Placed anew, 1 of 2 workers done"))
    assert "Placed anew, 1 of 2 workers done" in capsys.readouterr().out
    print_status(msgspec.structs.replace(status, database_problem="database is locked"))
    assert "The database can't be used: database is locked" in capsys.readouterr().out
    assert "coord model add NAME SOURCE" in out
    assert "worker join https://a:1" in out


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert all(character.isprintable() for character in printable(text))
    assert len(printable(text)) == len(text)


def test_what_a_worker_notes_of_a_span_is_shown() -> None:
    noted = span(BlockRange(0, 4), state="ready", note="its sessions run one at a time: why \x1b[31m")
    text = shown(worker_table((msgspec.structs.replace(WORKER, spans=(noted,)),)))
    assert "w-abc: blocks 0:4: its sessions run one at a time: why" in text
    assert "\x1b[31m" not in text


def test_what_is_copied_into_commands_is_whole_on_a_small_terminal() -> None:
    session_id, words = "90d7c3ef94b7f9d077513e914a86c227", "many words of what runs on which worker and why"
    table = plain_table("session", "workers", unbroken="session")
    table.add_row(session_id, words)
    out = Console(width=50)
    with out.capture() as captured:
        out.print(table)
    assert session_id in captured.get()
    assert words not in captured.get()
