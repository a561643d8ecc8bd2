from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from protocol.control_messages import GenerationReport
from protocol.ids import SessionId
from worker.waiting_reports import MAX_WAITING_REPORTS, UNSURE_S, WaitingReports


def report(number: int) -> GenerationReport:
    return GenerationReport(
        session_id=SessionId(str(number)), n_prompt_tokens=1, n_completion_tokens=1, outcome="stop"
    )


async def sent_all(reports: WaitingReports, now_s: float) -> list[str]:
    names = []
    while len(reports):
        one = await reports.next()
        reports.sent(one, now_s)
        names.append(one.session_id)
    return names


async def test_what_was_sent_shortly_before_the_socket_was_lost_is_sent_again_first() -> None:
    reports = WaitingReports()
    for number in range(3):
        reports.add(report(number))
        assert await sent_all(reports, float(number)) == [str(number)]
    reports.add(report(3))
    reports.send_again(0.5 + UNSURE_S)
    assert await sent_all(reports, 20.0) == ["1", "2", "3"]


async def test_what_is_sent_again_is_forgotten_once_it_is_sent_for_long() -> None:
    reports = WaitingReports()
    reports.add(report(0))
    for now_s, again in ((0.0, 1), (5.0, 1), (20.0, 0)):
        await sent_all(reports, now_s)
        reports.send_again(now_s + (UNSURE_S if again else UNSURE_S + 1.0))
        assert len(reports) == again


async def test_all_are_sent_when_none_waits() -> None:
    reports = WaitingReports()
    await reports.all_sent()
    reports.add(report(0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await reports.all_sent()
    await sent_all(reports, 0.0)
    await reports.all_sent()


async def test_there_is_no_more_than_so_many_and_the_oldest_go_first() -> None:
    reports = WaitingReports()
    for number in range(2):
        reports.add(report(number))
    await sent_all(reports, 0.0)
    for number in range(2, MAX_WAITING_REPORTS + 1):
        reports.add(report(number))
    reports.send_again(0.0)
    assert len(reports) == MAX_WAITING_REPORTS
    assert (await reports.next()).session_id == "1"
    with capture_logs() as logs:
        reports.add(report(-1))
    assert [(entry["event"], entry["session_id"]) for entry in logs] == [("generation_report_dropped", "1")]
