from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from protocol.errors import ConfigError
from tests.support.cgroups import cgroup_v2
from worker import kernels
from worker.device import unused_accelerator
from worker.doctor import device_finding, disk_finding, memory_finding, precision_finding, state_finding
from worker.hardware import Accelerator
from worker.identity import load_identity, opened_state

GPU = Accelerator(kind="cuda", name="NVIDIA H100")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU of this machine is used")


def unwritable_folder(tmp_path: Path) -> Path:
    """One that not even root can make files in, where the tests run as root."""
    if os.geteuid() == 0:
        return Path("/proc/self")
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    return folder


def test_the_device_is_named() -> None:
    found = device_finding("cpu")
    assert found.status == "ok"
    assert found.seen.startswith("cpu")


def test_the_precision_is_named_with_who_may_change_it() -> None:
    assert "int8 or int4, if the coordinator was started" in precision_finding("cpu", "auto").seen
    assert "int4, whatever the models need" in precision_finding("cpu", "int4").seen
    with pytest.raises(ConfigError, match="--precision float16: cpu can do float32, bfloat16, int8, int4"):
        precision_finding("cpu", "float16")


@needs_no_gpu
def test_a_gpu_that_torch_cannot_use_is_warned_of_loudly_with_the_command() -> None:
    found = device_finding("auto", lambda: GPU)
    assert found.status == "warn"
    assert "MANY TIMES SLOWER" in found.seen
    assert "NVIDIA H100" in found.seen
    assert "pip install" in found.mend


@needs_no_gpu
def test_joining_warns_of_it_too_unless_the_cpu_was_asked_for() -> None:
    unused = unused_accelerator("auto", lambda: GPU)
    assert unused is not None
    assert "NVIDIA H100" in unused[0]
    assert "pip install" in unused[1]
    assert unused_accelerator("cpu", lambda: GPU) is None
    assert unused_accelerator("auto", lambda: None) is None


def test_kernels_that_were_not_built_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_kernels", None)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    found = device_finding("cpu")
    assert (found.status, found.mend) == ("warn", kernels.MEND)
    assert "weren't built" in found.seen


@pytest.mark.parametrize(("free_bytes", "status"), [(64 * 10**9, "ok"), (3 * 10**9, "warn"), (10**8, "fail")])
def test_memory_is_judged_by_what_is_free(free_bytes: int, status: str) -> None:
    found = memory_finding(free_bytes)
    assert found.status == status
    assert "billion parameters" in found.seen
    assert bool(found.mend) == (status != "ok")


def test_the_limit_of_a_container_that_holds_is_named(tmp_path: Path) -> None:
    narrow = {"memory.max": str(2 * 10**9), "memory.current": str(5 * 10**8), "cpu.max": "50000 100000"}
    root = cgroup_v2(tmp_path, narrow)
    memory = memory_finding(root=root)
    assert memory.status == "warn"
    assert memory.seen.startswith(f"1.5 GB free (of 2.0 GB; {tmp_path}/sys/fs/cgroup/memory.max allows no more): ")
    assert memory.mend.startswith("raise that limit (docker run --memory, MemoryMax=), or close")
    device = device_finding("cpu", root=root)
    assert (
        f"({tmp_path}/sys/fs/cgroup/cpu.max allows no more: --threads 1 is the default, 1 the most)" in device.seen
    )


@pytest.mark.parametrize(("free_bytes", "status"), [(10**12, "ok"), (5 * 10**9, "warn"), (10**8, "fail")])
def test_disk_room_is_judged_where_the_folder_would_be(tmp_path: Path, free_bytes: int, status: str) -> None:
    found = disk_finding(tmp_path / "not" / "there", free_bytes)
    assert found.status == status
    assert str(tmp_path) in found.seen


def test_what_this_machine_has_can_be_measured(tmp_path: Path) -> None:
    assert "GB" in memory_finding().seen
    assert "GB" in disk_finding(tmp_path).seen


def test_a_state_folder_that_is_to_be_made_is_fine(tmp_path: Path) -> None:
    assert state_finding(tmp_path / "new").status == "ok"
    assert not (tmp_path / "new").exists()


def test_a_state_folder_with_its_key_is_fine_and_says_who_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    worker_id = load_identity(tmp_path).worker_id
    found = state_finding(tmp_path)
    assert (found.status, found.seen) == ("ok", f"{worker_id}, private")


def test_a_state_folder_without_a_key_gets_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert state_finding(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_running_worker_is_noticed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with opened_state(state):
        load_identity(state)
        assert "runs with it now" in state_finding(state).seen
    assert "runs" not in state_finding(state).seen


@pytest.mark.skipif(os.name != "posix", reason="no such modes")
def test_a_state_folder_that_others_may_look_into_is_to_be_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = state_finding(tmp_path)
    assert (found.status, found.mend) == ("warn", f"chmod 700 {tmp_path}")


@pytest.mark.skipif(os.name != "posix", reason="no such modes")
def test_a_key_that_others_may_read_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    load_identity(tmp_path)
    (tmp_path / "identity.key").chmod(0o644)
    found = state_finding(tmp_path)
    assert found.status == "fail"
    assert "chmod 600" in found.mend


def test_a_key_that_is_none_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "identity.key").write_text("no key")
    (tmp_path / "identity.key").chmod(0o600)
    assert state_finding(tmp_path).status == "fail"


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    found = state_finding(unwritable_folder(tmp_path))
    assert found.status == "fail"
    assert "can't be written" in found.seen
    assert "--state" in found.mend


def test_a_folder_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = state_finding(tmp_path / "file" / "state")
    assert found.status == "fail"
    assert "can't be made" in found.seen
