from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec

from protocol.checks import CheckList
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.program import program_done

doctor = partial(program_done, "coord", "doctor")


async def test_a_coordinator_that_is_well_is_exit_code_0(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        code, out, errors = await doctor("--state", str(tmp_path / "state"), "--json")
        checks = msgspec.json.decode(out, type=CheckList).checks
        assert [check for check in checks if check.status == "fail"] == []
        assert code == 0
        assert join_secret_of(coordinator) not in out + errors


async def test_a_broken_one_is_exit_code_1_and_a_table_with_the_mend(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running_coordinator(tmp_path):
        pass
    (state / "brigade.db").write_bytes(b"rubbish" * 1000)
    (state / "admin.key").write_text("rubbish")
    code, out, errors = await doctor("--state", str(state))
    assert code == 1
    assert "-> restore the state folder from a backup" in out
    assert "-> start it: coord serve" in out
    assert "Traceback" not in out + errors


async def test_a_join_secret_that_is_too_weak_is_a_finding_and_is_not_shown(tmp_path: Path) -> None:
    code, out, errors = await doctor("--state", str(tmp_path / "state"), "--json", BRIGADE_SECRET="changeme")
    assert code == 1
    settings = next(check for check in msgspec.json.decode(out, type=CheckList).checks if check.name == "settings")
    assert settings.status == "fail"
    assert "bits" in settings.seen
    assert "changeme" not in out + errors


async def test_a_first_look_where_nothing_is_changes_nothing(tmp_path: Path) -> None:
    code, _, errors = await doctor("--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0")
    assert code == 1
    assert errors == ""
    assert not (tmp_path / "state").exists()
