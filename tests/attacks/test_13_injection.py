"""Class 13. Defences: bound parameters, closed request types, harmless logs and tables, errors that say little."""

from __future__ import annotations

import importlib
import io
import json
import pkgutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from rich.console import Console

import protocol
from client.output import printable as shown_by_client
from coordinator.app import RunningCoordinator
from coordinator.cli_output import model_table, worker_table
from coordinator.keys import MODELS_LOOK
from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import Leaving
from protocol.logs import configure_logs
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually
from worker.told import say

QUOTES = ("x' OR '1'='1", "x'; DROP TABLE api_keys;--", 'x" OR ""="', "%", "x\\", "1); DELETE FROM workers;--")
OBEYED = ("\x1b[31mred", "\x1b]0;title\x07", "a\nFAKE level=info", "a\rb", "\x9b31m", "a\u202eb", "\x00")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(running: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(running, key_of(running, "admin")) as http:
        yield http


async def test_what_is_asked_for_is_never_sql(admin: Http) -> None:
    """Fails if a name, an id or a filter gets into a statement as text."""
    for words in QUOTES:
        body = json.dumps({"name": words}).encode()
        assert (await admin.ask("POST", "/admin/v1/keys", body)).status == 201
        path = words.replace("%", "%25").replace("/", "%2F").replace(";", "%3B").replace(" ", "%20")
        asks = (
            ("DELETE", f"/admin/v1/keys/{path}"),
            ("DELETE", f"/admin/v1/models/{path}"),
            ("GET", f"/v1/models/{path}"),
            ("GET", f"/admin/v1/keys/{path}/limits"),
            ("POST", f"/admin/v1/workers/{path}/drain"),
        )
        assert {(await admin.ask(*ask)).status for ask in asks} <= {400, 403, 404, 405}, words
    listed = json.loads((await admin.ask("GET", "/admin/v1/keys")).body)["keys"]
    assert {key["name"] for key in listed} >= set(QUOTES)
    assert not [key for key in listed if key["revoked_at"]]


def request_types() -> Iterator[type[msgspec.Struct]]:
    for module in pkgutil.iter_modules(protocol.__path__):
        is_for_workers = module.name == "worker_rest"  # of a newer minor version, which may say more
        if module.name.endswith(("rest", "key_limits")) and not is_for_workers:
            for value in vars(importlib.import_module(f"protocol.{module.name}")).values():
                is_struct = isinstance(value, type) and issubclass(value, msgspec.Struct)
                if is_struct and value.__name__.endswith(("Request", "Limits", "LimitsChange")):
                    yield value


def test_nothing_can_be_set_that_a_request_doesnt_have() -> None:
    """Fails if a request type takes fields that it doesn't know: one day a table's row has one of that name."""
    kinds = set(request_types())
    assert len(kinds) > 5
    assert [kind.__name__ for kind in kinds if not kind.__struct_config__.forbid_unknown_fields] == []


async def test_a_request_with_more_fields_changes_nothing(admin: Http) -> None:
    """Fails if what isn't part of a request is passed over, or taken."""
    before = (await admin.ask("GET", "/admin/v1/keys")).body
    for more in ({"key_id": "mine"}, {"revoked_at": None}, {"secret_hash": "0"}, {"limits": {"is_admin": True}}):
        body = json.dumps({"name": "k"} | more).encode()
        assert (await admin.ask("POST", "/admin/v1/keys", body)).status == 400, more
    assert (await admin.ask("GET", "/admin/v1/keys")).body == before


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_log_line_is_one_line_and_obeyed_by_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """Fails if what strangers write reaches the log as it is."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    try:
        configure_logs("test")
        for words in OBEYED:
            structlog.get_logger().info("request_refused", path=words, peers=[words])
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    err = capsys.readouterr().err
    assert len(err.splitlines()) == len(err.split("\n")) - 1 == len(OBEYED)
    assert not [words for words in OBEYED if words in err]


async def test_what_a_worker_says_of_itself_is_shown_as_text(
    running: RunningCoordinator, admin: Http, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a host's name, or a reason, gets to an operator's terminal as it is."""
    await add_model(running)
    words = "".join(OBEYED).replace("\x00", "")
    async with joined_worker(running, announce=announcement(hostname=words)) as worker:
        await worker.send(Leaving(reason=words))
        await eventually(lambda: [one for one in running.cluster.state.workers.values() if one.is_draining])
        status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
    out = io.StringIO()
    console = Console(file=out, highlight=False, force_terminal=False, width=300)
    console.print(worker_table(status.workers), model_table(status.models))
    assert "red" in out.getvalue()
    assert out.getvalue().replace("\n", "").isprintable()
    assert "FAKE level=info" not in [line.strip() for line in out.getvalue().splitlines()]
    capsys.readouterr()
    say(words)
    said = capsys.readouterr().out
    assert said.removesuffix("\n").isprintable()
    assert not set(shown_by_client(words)) & set("\x1b\x07\r\x9b")


async def test_a_key_s_name_is_printable(admin: Http) -> None:
    """Fails if a name can turn the text around it round, or end the line."""
    for words in OBEYED:
        body = json.dumps({"name": f"a{words}b"}).encode()
        assert (await admin.ask("POST", "/admin/v1/keys", body)).status == 400, words


async def test_a_defect_is_answered_without_a_word_of_ours(
    admin: Http, running: RunningCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if an exception's text or traceback is sent, whatever the caller asks for."""

    def broken(*_: object) -> None:
        raise RuntimeError("secret-4711 at /srv/brigade")

    monkeypatch.setattr(running.application[MODELS_LOOK], "get", broken)
    async with http_session(running, key_of(running, "client")) as http:
        for headers in ({}, {"Accept": "text/html"}, {"X-Debug": "1", "Cookie": "debug=1"}):
            answer = await http.ask("GET", "/v1/models?debug=1&trace=1", headers=headers)
            assert answer.status in (400, 500)
            for trace in (b"secret-4711", b"Traceback", b"RuntimeError", b".py"):
                assert trace not in answer.body


async def test_there_is_no_back_door_for_debugging(admin: Http) -> None:
    """Fails if a path, method or header that such things have does anything."""
    for path in (
        "/debug",
        "/debug/pprof",
        "/console",
        "/_debug",
        "/.env",
        "/.git/config",
        "/admin",
        "/actuator/env",
    ):
        assert (await admin.ask("GET", path)).status == 404, path
    for method in ("TRACE", "TRACK", "DEBUG", "CONNECT"):
        assert (await admin.ask(method, "/v1/hello")).status in (400, 404, 405), method
    spoofed = {
        "X-HTTP-Method-Override": "DELETE",
        "X-Original-URL": "/admin/v1/status",
        "X-Rewrite-URL": "/nothing",
    }
    assert b"brigade-coordinator" in (await admin.ask("GET", "/v1/hello", headers=spoofed)).body
