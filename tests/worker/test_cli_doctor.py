from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path

import msgspec
import pytest

from protocol.checks import CheckList
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.program import module_done, program_done

doctor = partial(program_done, "worker", "doctor")


async def test_all_is_well_is_exit_code_0_and_json_if_wanted(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        code, out, errors = await doctor(
            *(coordinator.url, "--state", str(tmp_path / "worker"), "--device", "cpu", "--json"),
            BRIGADE_SECRET=secret,
        )
        checks = msgspec.json.decode(out, type=CheckList).checks
        assert [check.name for check in checks if check.status == "fail"] == []
        assert code == 0
        assert {"versions", "device", "memory", "disk room", "state folder", "port", "reachable"} < {
            check.name for check in checks
        }
        assert secret not in out + errors
        assert not (tmp_path / "worker").exists()


async def test_a_failure_is_exit_code_1_and_a_table_with_the_mend(tmp_path: Path) -> None:
    secret = secrets.token_urlsafe(32)
    code, out, errors = await doctor(
        "https://127.0.0.1:1", "--state", str(tmp_path / "worker"), "--device", "cpu", BRIGADE_SECRET=secret
    )
    assert code == 1
    assert "-> check the address and port" in out
    assert "Traceback" not in out + errors
    assert secret not in out + errors


async def test_it_works_where_torch_does_not(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    code, out, errors = await module_done(
        *("worker", "doctor", "https://127.0.0.1:1", "--state", str(tmp_path / "worker"), "--json"),
        PYTHONPATH=str(broken.parent),
    )
    assert code == 1
    device = next(check for check in msgspec.json.decode(out, type=CheckList).checks if check.name == "device")
    assert device.status == "fail"
    assert "libcudart" in device.seen
    assert "pip install" in device.mend
    assert "Traceback" not in errors


@pytest.mark.parametrize("option", [("--listen", "a/b"), ("--advertise", "http://x")])
async def test_a_bad_option_is_one_line(option: tuple[str, str]) -> None:
    code, _, errors = await doctor("https://127.0.0.1:1", *option)
    assert code == 2
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
