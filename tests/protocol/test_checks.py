from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from rich.console import Console

from protocol.checks import (
    Check,
    Finding,
    broken,
    checked,
    doubtful,
    exit_code_of,
    fine,
    in_thread,
    reason_of,
    report_table,
)
from protocol.errors import StorageError
from tests.support.waiting import eventually


async def found() -> Finding:
    return doubtful("half full", "empty it")


async def failing() -> Finding:
    raise StorageError("the disk is full")


async def defective() -> Finding:
    raise KeyError("oops")


async def endless() -> Finding:
    await asyncio.Event().wait()
    return fine("never")


async def test_a_check_is_what_it_found() -> None:
    check = await checked("disk", found, "unused")
    assert check == Check(name="disk", status="warn", seen="half full", mend="empty it")


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        (failing, "the disk is full"),
        (defective, "the check itself failed: KeyError: 'oops'"),
        (endless, "within 0.05 s"),
    ],
)
async def test_whatever_goes_wrong_in_a_check_is_a_failure_with_its_mend(look: object, seen: str) -> None:
    check = await checked("it", look, "mend it", deadline_s=0.05)  # type: ignore[arg-type]
    assert (check.status, check.mend) == ("fail", "mend it")
    assert seen in check.seen


async def test_a_thread_gives_its_result_its_error_or_is_left_behind() -> None:
    assert await in_thread(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
    release, threads = threading.Event(), list[threading.Thread]()

    def stuck() -> Finding:
        threads.append(threading.current_thread())
        release.wait(20)
        return fine("late")

    check = await checked("disk", lambda: in_thread(stuck), "unmount it", deadline_s=0.05)
    assert check.status == "fail"
    await eventually(lambda: threads)  # which may have begun later than that
    release.set()
    assert threads[0].daemon
    await asyncio.to_thread(threads[0].join, 10)
    await asyncio.sleep(0)  # its result comes, and nobody wants it


def test_only_failures_make_the_exit_code_1() -> None:
    checks = [Check(name="a", status="ok", seen=""), Check(name="b", status="warn", seen="")]
    assert exit_code_of(checks) == 0
    assert exit_code_of([*checks, Check(name="c", status="fail", seen="")]) == 1


def test_the_report_shows_each_mend_and_obeys_nothing_in_it() -> None:
    found = broken("gone \x1b[2Jaway", "start it")
    checks = [
        Check(name="worker", status=found.status, seen=found.seen, mend=found.mend),
        Check(name="disk", status="ok", seen="50 GB free"),
    ]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - the console's for its life
    console.print(report_table(checks))
    console.file.close()
    text = console.export_text()
    assert "\x1b" not in text
    assert "-> start it" in text
    assert "2 checks: 1 failed, 0 warnings" in text
    assert msgspec.json.decode(msgspec.json.encode(checks), type=list[Check]) == checks


def test_an_error_is_said_in_the_system_s_words() -> None:
    assert reason_of(OSError(111, "Connect call failed ('127.0.0.1', 1)")) == "Connection refused"
    assert reason_of(OSError("odd")) == "odd"
