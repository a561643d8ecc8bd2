"""What comes by hand, from neighbours and browsers: settings, invites, announcements, traces, chats, cookies."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from zeroconf import DNSCache, DNSIncoming, DNSOutgoing
from zeroconf.asyncio import AsyncServiceInfo

import client.cli
import coordinator.cli
import worker.cli
from client.terminal.conversation import Conversation, Turn
from client.terminal.saved_conversation import MAX_FILE_BYTES, read_conversation, saved, write_conversation
from coordinator.dashboard_sessions import DashboardSessions, secret_mark
from protocol.errors import ConfigError, InvalidRequestError, TooLargeError, UnauthenticatedError
from protocol.ids import CoordinatorId, InviteId, KeyId
from protocol.invites import Invite, check_pinned, invite_from_text
from protocol.lan import MAX_ADDRESSES, SERVICE_TYPE, Announced, announced_from, service_info
from protocol.tracing import trace_from_text
from tests.fuzz.credential_targets import NOW_S, _authority
from tests.fuzz.target import Target

_COMMANDS = {
    b"worker": (worker.cli.app, ("join", "https://192.0.2.1:7400")),
    b"coordinator": (coordinator.cli.app, ("serve",)),
    b"client": (client.cli.app, ("generate", "why?")),
    b"gateway": (client.cli.app, ("serve",)),
}


@cache
def _command(program: bytes) -> tuple[Any, tuple[str, ...]]:
    app, arguments = _COMMANDS[program]
    return typer.main.get_command(app), arguments


def settings_files(data: bytes) -> None:
    """A `brigade.toml`, as the command of the program that the first line names takes it."""
    program, _, text = data.partition(b"\n")
    command, arguments = _command(program if program in _COMMANDS else b"worker")
    with tempfile.TemporaryDirectory(prefix="brigade-fuzz-") as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "brigade.toml"
        path.write_bytes(text)
        path.chmod(0o600)
        command([*arguments, "--config", str(path), "--show-config"], standalone_mode=False)


def invites(data: bytes) -> None:
    """An invite: one that is taken has addresses to join at, and one form but for the end of its last letter."""
    invite = invite_from_text(data.decode("utf-8", "replace"))
    assert invite.urls
    assert invite_from_text(invite.text()) == invite
    with contextlib.suppress(UnauthenticatedError):
        check_pinned(invite, data.decode("latin-1"), data, invite.urls[0])


def announcements(data: bytes) -> None:
    """A packet of mDNS: of what it announces, what is taken is well formed and bounded."""
    packet = DNSIncoming(data)
    heard = _Heard(cache=DNSCache())
    heard.cache.async_add_records(packet.answers() if packet.valid else [])
    found = AsyncServiceInfo(SERVICE_TYPE, _info().name)
    found.load_from_cache(heard, packet.now)  # type: ignore[arg-type] - of the network, it asks for this alone
    announced = announced_from(found)
    if announced is not None:
        assert 1 <= len(announced.urls) <= MAX_ADDRESSES
        assert str(announced).isprintable()
        assert announced_from(service_info(announced)) == announced


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the library has heard on a network."""

    cache: DNSCache


def traces(data: bytes) -> None:
    """A `traceparent`: what is taken is written as W3C has it, of the first version."""
    trace = trace_from_text(data.decode("latin-1"))
    assert trace is None or trace_from_text(trace.traceparent()) == trace


def saved_chats(data: bytes) -> None:
    """A conversation's file: one that is taken is written and read again as it was."""
    with tempfile.TemporaryDirectory(prefix="brigade-fuzz-") as folder:
        path, again = Path(folder) / "chat", Path(folder) / "again"
        path.write_bytes(data)
        what, conversation = read_conversation(path)
        write_conversation(again, what, may_replace=False)
        assert read_conversation(again) == (what, conversation)


_SIGNED_IN = KeyId("0123456789abcdef"), secret_mark("ab" * 32)


@cache
def _sessions() -> DashboardSessions:
    return DashboardSessions(_authority(), lambda: NOW_S)


def dashboard_cookies(data: bytes) -> None:
    """A browser's cookie and, in the line after it, the token that goes with requests that change something."""
    cookie, _, token = data.decode("latin-1").partition("\n")
    claims = _sessions().read(cookie)
    assert (claims.key_id, claims.secret_mark) == _SIGNED_IN
    _sessions().is_csrf_token(token, claims)


def _settings_seeds() -> list[bytes]:
    return [
        b'worker\n[worker]\nlisten = "0.0.0.0:7500"\nmemory = "8GiB"\nprecision = "auto"\nthreads = 2\n'
        b'compile = false\nmodel = "m"\nblocks = "0:4"\ntrust_author = ["a"]\nadvertise = "https://a:1"\n',
        b'coordinator\n[coordinator]\nlisten = "127.0.0.1:7400"\nstate = "x"\nmdns = true\n'
        b'public-url = "https://a:1"\n',
        b'client\n[client]\nurl = "https://a:7400"\nmax-tokens = 5\ntemperature = 0.5\n'
        b'api-key-file = "x"\n[worker]\n',
        b'gateway\n[gateway]\nlisten = "127.0.0.1:8000"\nallow-origin = ["*"]\n[client]\nurl = "https://a:7400"\n',
    ]


def _invite_seeds() -> list[bytes]:
    ca = "ab" * 32
    each = Invite(invite_id=InviteId("ab" * 4), ca_fingerprint=ca, urls=("https://192.0.2.1:7400",), key=b"k" * 32)
    return [each.text().encode()]


@cache
def _info() -> AsyncServiceInfo:
    return service_info(
        Announced(
            coordinator_id=CoordinatorId("c-1"),
            ca_fingerprint="ab" * 8,
            version="0.1.0",
            addresses=("192.0.2.1", "2001:db8::1"),
            port=7400,
        )
    )


def _packet_seeds() -> list[bytes]:
    packet, info = DNSOutgoing(0x8400), _info()
    for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
        packet.add_answer_at_time(record, 0)
    return packet.packets()


def _chat_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="brigade-fuzz-") as folder:
        path = Path(folder) / "chat"
        talk = Conversation(system="be brief", turns=(Turn(said="why?", answer="because"),))
        write_conversation(
            path, saved(talk, model="m", settings={"temperature": 0.5, "seed": 3}), may_replace=False
        )
        return [path.read_bytes()]


def _cookie_seeds() -> list[bytes]:
    signed_in = _sessions().begin(*_SIGNED_IN)
    return [f"{signed_in.cookie}\n{_sessions().csrf_token(signed_in.claims)}".encode()]


SETTINGS_TARGETS = (
    Target(
        name="settings-files",
        run=settings_files,
        seeds=_settings_seeds,
        allowed=(ConfigError, InvalidRequestError),
    ),
    Target(name="invites", run=invites, seeds=_invite_seeds, allowed=(ConfigError,)),
    Target(name="announcements", run=announcements, seeds=_packet_seeds),
    Target(
        name="traces",
        run=traces,
        seeds=lambda: [
            b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01",
            b"01-" + b"0" * 31 + b"1-" + b"1" * 16 + b"-00-x",
        ],
    ),
    Target(
        name="saved-chats",
        run=saved_chats,
        seeds=_chat_seeds,
        allowed=(InvalidRequestError, TooLargeError),
        max_memory_bytes=2 * MAX_FILE_BYTES,
    ),
    Target(name="dashboard-cookies", run=dashboard_cookies, seeds=_cookie_seeds, allowed=(UnauthenticatedError,)),
)
