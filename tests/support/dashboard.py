"""A browser on the dashboard, as far as the coordinator can tell: a cookie, an Origin, an event stream.

async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
    async with page.events() as events:
        state = await events.state_once(lambda state: state.workers)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
import msgspec

from coordinator.app import RunningCoordinator
from coordinator.dashboard_door import COOKIE, CSRF_HEADER
from coordinator.policy.live import with_changes
from protocol.dashboard_rest import DashboardSession, LiveDelta, LiveState, SignInRequest, StreamEnd
from protocol.tls import COORDINATOR_NAME
from tests.support.coordinators import Answer, Http, http_session, key_of
from tests.support.waiting import DEADLINE_S


@dataclass(slots=True, kw_only=True)
class Page:
    """Our page in a browser."""

    http: Http
    cookie: str = ""
    session: DashboardSession | None = None

    async def sign_in(self, key: str) -> Answer:
        """Show a key; take the cookie if there is one."""
        answer = await self.ask("POST", "/dashboard/session", SignInRequest(key=key))
        if answer.status == 200:
            self.session = answer.read(DashboardSession)
        return answer

    async def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """A request as the page makes it; `headers` go before (None: is left out), `_` in names for `-`."""
        own: dict[str, str | None] = {"Origin": self.http.url, "Sec-Fetch-Site": "same-origin"}
        if self.cookie:
            own["Cookie"] = f"{COOKIE}={self.cookie}"
        if self.session is not None:
            own[CSRF_HEADER] = self.session.csrf_token
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in own.items() if value is not None}
        answer = await self.http.ask(method, path, body, headers=sent)
        for header in answer.headers.getall("Set-Cookie", []):
            self.cookie = SimpleCookie(header)[COOKIE].value
        return answer

    @asynccontextmanager
    async def events(self, **headers: str) -> AsyncIterator[Events]:
        """The event stream."""
        headers = {"Cookie": f"{COOKIE}={self.cookie}", "Sec-Fetch-Site": "same-origin", **headers}
        url = self.http.url + "/dashboard/events"
        async with self.http.session.get(url, headers=headers, server_hostname=COORDINATOR_NAME) as response:
            assert response.status == 200, await response.read()
            yield Events(response=response)


@dataclass(slots=True, kw_only=True)
class Events:
    """A stream, and the state that its events come to."""

    response: aiohttp.ClientResponse
    state: LiveState | None = None
    n_snapshots: int = 0
    seen: list[str] = field(default_factory=list)
    end: StreamEnd | None = None

    async def next(self) -> str:
        """Take the next event; its name, or an empty one once the stream is over."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                block = b""
                while not block.endswith(b"\n\n"):
                    line = await self.response.content.readline()
                    if not line:
                        return ""
                    block += line
                fields = dict(line.split(": ", 1) for line in block.decode().strip().split("\n"))
                if "event" in fields:
                    self._take(fields["event"], fields["data"])
                    return fields["event"]

    async def state_once(self, is_so: Callable[[LiveState], Any]) -> LiveState:
        """The state, once it is as wanted."""
        while self.state is None or not is_so(self.state):
            assert await self.next(), f"the stream is over: {self.end}"
        return self.state

    async def over(self) -> StreamEnd | None:
        """Why the stream ended, once it has."""
        while await self.next():
            pass
        return self.end

    def _take(self, name: str, data: str) -> None:
        self.seen.append(name)
        match name:
            case "snapshot":
                self.state = msgspec.json.decode(data, type=LiveState)
                self.n_snapshots += 1
            case "delta":
                assert self.state is not None, "a delta before any snapshot"
                self.state = after(self.state, msgspec.json.decode(data, type=LiveDelta))
            case "end":
                self.end = msgspec.json.decode(data, type=StreamEnd)


def after(state: LiveState, delta: LiveDelta) -> LiveState:
    """The state that a delta makes of another."""
    return LiveState(
        at_s=delta.at_s,
        cluster={**state.cluster, **delta.cluster},
        models=with_changes(state.models, delta.models),
        workers=with_changes(state.workers, delta.workers),
        generations=with_changes(state.generations, delta.generations),
    )


@asynccontextmanager
async def browser(coordinator: RunningCoordinator) -> AsyncIterator[Page]:
    """Our page, with nobody signed in."""
    async with http_session(coordinator) as http:
        yield Page(http=http)


@asynccontextmanager
async def signed_in(coordinator: RunningCoordinator) -> AsyncIterator[Page]:
    """Our page, with the first operator signed in."""
    async with browser(coordinator) as page:
        answer = await page.sign_in(key_of(coordinator, "admin"))
        assert answer.status == 200, answer.body
        yield page
