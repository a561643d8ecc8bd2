"""The whole coordinator: starts, refuses to start, stops in order, comes back with what it had."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from blockbuster import blockbuster_ctx

from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import Assign
from protocol.errors import ConfigError, ConflictError, PortInUseError, StorageError
from protocol.ids import ModelName
from protocol.rest import ModelList, RouteRequest
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.scripted_worker import connected_worker, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually

MAX_RESIDENT_BYTES = 150 * 2**20

_PROGRAM = """
import asyncio, json, sys
from pathlib import Path
import psutil
from coordinator.app import running
from coordinator.config import CoordinatorConfig

async def main():
    async with running(CoordinatorConfig(state=Path(sys.argv[1]), listen_port=0)):
        heavy = sorted({"torch", "transformers", "safetensors"} & set(sys.modules))
        print(json.dumps({"heavy": heavy, "resident": psutil.Process().memory_info().rss}))

asyncio.run(main())
"""


def test_the_server_loads_no_torch_and_stays_small(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path / "state")],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # beside the log
    found = json.loads(line)
    assert found["heavy"] == []
    assert found["resident"] < MAX_RESIDENT_BYTES


async def test_the_real_address_is_written_to_the_state_folder(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        assert coordinator.port > 0
        assert coordinator.url == f"https://127.0.0.1:{coordinator.port}"
        assert coordinator.state_folder.read("url") == coordinator.url


async def test_the_public_address_is_what_others_are_told(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path, public_url="https://brigade.example:1234") as coordinator:
        assert coordinator.url == "https://brigade.example:1234"
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            answer = await http.ask("GET", "/admin/v1/status", headers={"Host": "brigade.example:1234"})
            assert answer.read(ClusterStatus).url == coordinator.url


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])
async def test_other_listen_addresses_work_from_this_machine(tmp_path: Path, host: str) -> None:
    async with running_coordinator(tmp_path, listen_host=host) as coordinator, http_session(coordinator) as http:
        assert (await http.ask("GET", "/v1/hello")).status == 200
        assert coordinator.url.endswith(f":{coordinator.port}")
        assert "0.0.0.0" not in coordinator.url


async def test_a_taken_port_is_said_and_nothing_is_left_open(tmp_path: Path, own_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", own_port)),
        pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{own_port}.*--listen"),
    ):
        async with running_coordinator(tmp_path, listen_port=own_port):
            pass
    async with running_coordinator(tmp_path, listen_port=own_port) as coordinator:  # the folder is free again
        assert coordinator.port == own_port
        assert coordinator.is_first_start, "who was refused before is told what to do all the same"
    async with running_coordinator(tmp_path) as coordinator:
        assert not coordinator.is_first_start


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_of_another_machine_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError):
        async with running_coordinator(tmp_path, listen_host=host):
            pass


async def test_two_coordinators_on_one_folder_are_refused(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path):
        with pytest.raises(ConflictError, match="another coordinator"):
            async with running_coordinator(tmp_path):
                pass


async def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    with pytest.raises(StorageError):
        async with running_coordinator(tmp_path):
            pass


async def test_what_it_had_is_there_after_a_restart(tmp_path: Path) -> None:
    key = WorkerKey()
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with joined_worker(coordinator, key=key) as worker:
            assign = await worker.receive(Assign)
            while not assign.spans:
                assign = await worker.receive(Assign)
        first = (coordinator.authority.ca_fingerprint, key_of(coordinator, "client"))
        token = worker.grant.session_token
    async with running_coordinator(tmp_path) as coordinator:
        assert (coordinator.authority.ca_fingerprint, key_of(coordinator, "client")) == first
        assert key.worker_id in coordinator.cluster.state.workers
        async with http_session(coordinator, first[1]) as http:
            assert [m.name for m in (await http.ask("GET", "/v1/models")).read(ModelList).models] == ["tiny"]
        async with http_session(coordinator, token) as http:  # its token is still good
            assert (await http.ask("POST", "/v1/worker/sources", b'{"files":[]}')).status == 200
        async with joined_worker(coordinator, key=key) as worker:
            assert (await worker.receive(Assign)).epoch >= assign.epoch


async def test_a_stop_closes_the_control_sockets_at_once(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        joining = joined_worker(coordinator)
        worker = await joining.__aenter__()
        await worker.receive(Assign)
        closed = asyncio.ensure_future(worker.closed())  # noqa: TID251 - answers the close while the coordinator stops
    async with asyncio.timeout(5):
        assert await closed == aiohttp.WSCloseCode.GOING_AWAY
    await joining.__aexit__(None, None, None)


async def test_a_worker_that_vanished_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with running_coordinator(tmp_path) as coordinator:
        _, writer = await asyncio.open_connection("127.0.0.1", coordinator.port)  # never says a word
        started_s = loop.time()
    assert loop.time() - started_s < 20.0  # the stop has 5 s, and the library would wait for a minute
    writer.close()


async def test_an_error_inside_comes_out_as_itself(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with running_coordinator(tmp_path):
            raise KeyError("mine")


async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    # The start and the stop may block: nobody is served then, and the migration has a loop of its own.
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        admin_key, key = key_of(coordinator, "admin"), WorkerKey()
        grant = await enrolled(coordinator, key)
        with blockbuster_ctx("coordinator"):
            async with http_session(coordinator, admin_key) as http:
                for path in ("/v1/hello", "/v1/ca", "/v1/models", "/admin/v1/status", "/admin/v1/keys"):
                    assert (await http.ask("GET", path)).status == 200
                for sha256 in model.contents:
                    assert (await http.ask("GET", f"/v1/files/{sha256}")).status == 200
                request = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=1, max_tokens=1)
                assert (await http.ask("POST", "/v1/routes", request)).status == 503
                async with connected_worker(coordinator, key, grant) as worker:
                    await worker.receive(Assign)
                await eventually(lambda: not coordinator.cluster.state.workers[key.worker_id].is_connected)
                assert (await http.ask("DELETE", "/admin/v1/models/tiny")).status == 200
