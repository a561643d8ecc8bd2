"""Puts a worker's parts together, in the order in which they need each other. Runs none of the loops."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web

from protocol.guarded_application import guarded_application
from protocol.host_names import own_names
from protocol.http_connector import ClosingConnector
from protocol.listening import check_can_listen
from protocol.metrics_address import OPTION as METRICS_OPTION
from protocol.metrics_address import metrics_notice
from protocol.span_export import span_export
from protocol.spans import SpanSink
from worker.authorship import Authorship
from worker.config import WorkerConfig
from worker.device import unused_accelerator
from worker.downloads import Downloader
from worker.draft_model import check_draft_model
from worker.draft_start import DraftStart
from worker.engine import Engine
from worker.enrolment import Credentials, CredentialsHolder, enrol, waited_for
from worker.fetching import Fetching
from worker.file_server import FileServer
from worker.files import FileCache
from worker.goodbye import granted, said_if_failed
from worker.holdings import Holdings
from worker.identity import Identity, load_identity, opened_state
from worker.keeper import Keeper
from worker.machine import Machine, before_draft_model, engine_on, keeper_limits, measured
from worker.model_folders import ModelFolders
from worker.ready_words import cpu_line
from worker.self_report import announcement, heartbeat
from worker.server import DataPlane
from worker.site import Site, bound_socket, facing_address, url_of
from worker.sources import Sources
from worker.uplink import Uplink
from worker.uplink_hooks import UplinkHooks
from worker.when_needed import coordinator_on_network, metrics_at

_MAX_FILE_CONNECTIONS = 16
ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker is given from outside."""

    config: WorkerConfig
    tell: Callable[[str], None]
    """A line for people."""
    clock: Callable[[], float]
    """Seconds since 1970, UTC."""
    on_drain: Callable[[str], None]
    """The coordinator asked the worker to leave, for this reason."""
    enrolled: Credentials | None = None
    """What it was granted a moment ago; None: it is still to enrol."""
    has_state: bool = False
    """Whether the state folder is held for it already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the worker listens, and what others call that."""

    bound: socket.socket
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """What a worker stands on once it is let in."""

    identity: Identity
    cache: FileCache
    address: Address
    machine: Machine
    expected: Machine
    """What of it is expected to be left beside the draft model."""
    renew: Callable[[], Awaitable[Credentials]]
    """Enrol anew."""
    credentials: CredentialsHolder
    on_cpu_because: str = ""
    """Why an accelerator of this machine isn't used; empty if none is left unused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A worker, enrolled and listening; but without its loops: `engine.watch`, `keep`, `uplink.run`."""

    identity: Identity
    address: Address
    engine: Engine
    holdings: Holdings
    data_plane: DataPlane
    keep: Callable[[], Coroutine[Any, Any, None]]
    """Load the draft model, then hold what is assigned, for ever."""
    uplink: Uplink
    metrics_url: str | None
    """Where Prometheus reads its metrics."""


async def assembled(around: Surroundings, stack: AsyncExitStack) -> Parts:
    """Start everything in order; `stack` closes it in reverse.

    Raises:
        ConfigError, StorageError: a setting or the state folder can't be used.
        UnreachableError, WrongSecretError, ProtocolVersionError, ClockSkewError: the worker can't enrol.
    """
    spans = await stack.enter_async_context(span_export("worker"))  # first, so that it ends after the last session
    footing = await _footing(around, stack)
    holdings = Holdings(around.config.wire, on_cpu_because=footing.on_cpu_because)
    engine = await stack.enter_async_context(engine_on(around.config, footing.machine, footing.cache.quantised))
    draft = DraftStart(around.config, whole=footing.machine, expected=footing.expected, holdings=holdings)
    data_plane, uplink = _planes(around, footing, draft, engine, holdings, spans)
    await stack.enter_async_context(data_plane)
    application = _application(around.config, footing.address.url, data_plane, footing.cache)
    site = await stack.enter_async_context(Site(application, footing.address.bound, footing.credentials))
    listen = around.config.metrics_listen
    metrics_url = await stack.enter_async_context(metrics_at(listen, engine, data_plane, holdings, site))
    if line := metrics_notice(metrics_url, listen):
        around.tell(line)
    http = await stack.enter_async_context(_file_session())

    async def keep() -> None:
        machine = await draft.loaded(engine, around.tell)
        await _keeper(around, footing, machine, engine, holdings, http).run()

    return Parts(
        identity=footing.identity,
        address=footing.address,
        engine=engine,
        holdings=holdings,
        data_plane=data_plane,
        keep=keep,
        uplink=uplink,
        metrics_url=metrics_url,
    )


async def _footing(around: Surroundings, stack: AsyncExitStack) -> Footing:
    if not around.has_state:
        stack.enter_context(opened_state(around.config.state))
    if around.enrolled is not None:
        stack.push_async_exit(partial(said_if_failed, around.enrolled))
    if around.config.draft_model is not None:
        await asyncio.to_thread(check_draft_model, around.config.draft_model)
    if around.config.metrics_listen is not None:
        await asyncio.to_thread(check_can_listen, *around.config.metrics_listen, option=METRICS_OPTION)
    identity = await asyncio.to_thread(load_identity, around.config.state)
    around = await _directed(around, identity, stack)
    config = around.config
    cache = await asyncio.to_thread(FileCache, config.state / "cache", limit_bytes=config.cache_bytes)
    address = await _address(around, stack)
    machine = await asyncio.to_thread(measured, config)
    expected = await asyncio.to_thread(before_draft_model, config, machine)
    unused = await asyncio.to_thread(unused_accelerator, config.device)
    if unused is not None:
        around.tell(cpu_line(*unused))
    around.tell(f"worker {identity.worker_id}: enrolling at {', '.join(config.coordinator_urls)}")
    renew = partial(_enrolled, around, identity)
    first = around.enrolled
    if first is None:
        first = await waited_for(partial(granted, renew), at_most_s=config.join_timeout_s, tell=around.tell)
        stack.push_async_exit(partial(said_if_failed, first))
    credentials = CredentialsHolder(first, config.coordinator_urls)
    around.tell(f"enrolled at {credentials.current.coordinator_url}; others reach this worker at {address.url}")
    return Footing(
        identity=identity,
        cache=cache,
        address=address,
        machine=machine,
        expected=expected,
        renew=renew,
        credentials=credentials,
        on_cpu_because=unused[0] if unused else "",
    )


async def _directed(around: Surroundings, identity: Identity, stack: AsyncExitStack) -> Surroundings:
    """The same, with the coordinator's addresses: found on the local network, and joined, where none are given."""
    config, tell = around.config, around.tell
    if config.coordinator_urls:
        return around
    tell("no coordinator's address is given: searching the local network")
    search = partial(coordinator_on_network, identity, config.join_secret, around.clock, tell)
    found = await waited_for(search, at_most_s=config.join_timeout_s, tell=tell)
    stack.push_async_exit(partial(said_if_failed, found.credentials))
    return replace(around, config=replace(config, coordinator_urls=found.urls), enrolled=found.credentials)


async def _enrolled(around: Surroundings, identity: Identity) -> Credentials:
    secret = await asyncio.to_thread(around.config.join_secret)
    return await enrol(identity, around.config.coordinator_urls, secret, around.clock)


def _planes(
    around: Surroundings,
    footing: Footing,
    draft: DraftStart,
    engine: Engine,
    holdings: Holdings,
    spans: SpanSink,
) -> tuple[DataPlane, Uplink]:
    """Each needs the other: one reports what the other served, which tells with each heartbeat how busy it is."""
    config = around.config
    hooks = UplinkHooks(
        announce=lambda: announcement(config, footing.address.url, draft.machine, holdings),
        heartbeat=lambda: heartbeat(engine, data_plane, holdings, around.clock()),
        renew=footing.renew,
        on_drain=around.on_drain,
        sessions_begun=lambda: data_plane.sessions_begun,
        on_end_sessions=lambda order: data_plane.end_sessions(order),  # noqa: PLW0108 - it is made below
        tell=around.tell,
    )
    uplink = Uplink(credentials=footing.credentials, holdings=holdings, hooks=hooks, clock=around.clock)
    data_plane = DataPlane(
        engine,
        holdings,
        footing.credentials,
        footing.identity.worker_id,
        config.chunk_tokens,
        uplink.report_generation,
        around.clock,
        wire=config.wire,
        spans=spans,
    )
    return data_plane, uplink


def _keeper(
    around: Surroundings,
    footing: Footing,
    machine: Machine,
    engine: Engine,
    holdings: Holdings,
    http: aiohttp.ClientSession,
) -> Keeper:
    rng = random.SystemRandom()
    folders = ModelFolders(around.config.state / "models", footing.cache)
    sources = Sources(http, footing.credentials, footing.identity.worker_id, rng)
    return Keeper(
        engine=engine,
        holdings=holdings,
        folders=folders,
        fetching=Fetching(
            cache=footing.cache,
            downloader=Downloader(http, footing.cache, around.clock),
            sources=sources,
            clock=around.clock,
        ),
        authorship=Authorship(around.config.trusted_authors, folders, sources.signature),
        limits=keeper_limits(around.config, machine),
        rng=rng,
        tell=around.tell,
        compile_folder=around.config.state / "compiled" if around.config.compiles else None,
    )


async def _address(around: Surroundings, stack: AsyncExitStack) -> Address:
    config = around.config
    facing = await waited_for(
        partial(facing_address, config.coordinator_urls), at_most_s=config.join_timeout_s, tell=around.tell
    )
    bound = stack.enter_context(bound_socket(config.listen_host or facing, config.listen_port))
    if config.listen_host in ANY_HOST:
        around.tell(
            f"warning: listening on every address of this machine; --listen {facing} would do for the coordinator. "
            "Only tickets and certificates of the cluster open anything; let no other network through the firewall"
        )
    return Address(bound=bound, url=(config.advertise_url or url_of(bound, facing)).rstrip("/"))


def _application(config: WorkerConfig, url: str, data_plane: DataPlane, cache: FileCache) -> web.Application:
    names = own_names((config.listen_host or "localhost",), (url,))
    app = guarded_application(names, who="worker", option="--advertise")
    data_plane.add_routes(app)
    FileServer(cache).add_routes(app)
    return app


def _file_session() -> aiohttp.ClientSession:
    connector = ClosingConnector(limit=_MAX_FILE_CONNECTIONS)
    return aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False)
