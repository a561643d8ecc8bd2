"""The coordinator put together: `running(config)` is the whole program, for the command line and for tests.

Opened in order, closed in the opposite one: state folder and database, cluster, sweep, HTTP. So at the stop the
door is shut first, then the control sockets are closed, and the database goes last.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from aiohttp import web

from coordinator import state_folder as names
from coordinator.addresses import known_names
from coordinator.admin_api import add_admin_routes
from coordinator.authority import Authority
from coordinator.background import running_beside
from coordinator.bad_sources import BadSources
from coordinator.catalogue import Catalogue
from coordinator.client_api import add_client_routes
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.control_socket import ControlSocket
from coordinator.credentials import Authenticator
from coordinator.file_store import FileStore
from coordinator.generation_reports import GenerationReports
from coordinator.joining import AttemptLimiter, Joining
from coordinator.keys import (
    ACCESS,
    AUTHENTICATOR,
    AUTHORITY,
    BAD_SOURCES,
    CATALOGUE,
    CLOCK,
    CLUSTER,
    CONFIG,
    CONTROL_SOCKETS,
    JOIN_LIMITER,
    JOINING,
    KNOWN_NAMES,
    PUBLIC_URL,
    QUOTA_CLOCK,
    REPORTS,
    REPOSITORY,
    ROUTE_DESK,
    TICKET_DESK,
    TRUST_REPORTS,
    VERSION,
)
from coordinator.middleware import add_security_headers, answer_errors, check_caller
from coordinator.opening import OpenedState, opened_state
from coordinator.policy.state import PolicySettings
from coordinator.quota_api import add_quota_routes
from coordinator.quota_clock import SteadyClock
from coordinator.quota_desk import QuotaDesk
from coordinator.quota_sweep import expire_forever
from coordinator.repository import Repository
from coordinator.route_desk import RouteDesk
from coordinator.state_folder import StateFolder
from coordinator.sweeps import look_forever, sweep_forever
from coordinator.ticket_desk import TicketDesk
from coordinator.trust_api import add_trust_routes
from coordinator.trust_reports import TrustReports
from coordinator.worker_api import add_worker_routes
from protocol.codec import MAX_BODY_BYTES
from protocol.errors import ConfigError, PortInUseError
from protocol.tls import server_context
from protocol.version import program_version

log = structlog.get_logger(__name__)

SHUTDOWN_S = 5.0
"""Requests under way get so long at the stop."""
IDLE_S = 15.0
"""How long a request's headers may take to come, and a connection without a request may stay."""
BACKLOG = 256
ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCoordinator:
    """A coordinator that answers at `url` (`https://host:port`, for this machine or as configured)."""

    url: str
    port: int
    is_first_start: bool
    """Whether no coordinator has answered from this state folder before."""
    cluster: Cluster
    authority: Authority
    state_folder: StateFolder
    repository: Repository
    catalogue: Catalogue


def utc_now_s() -> float:
    """The time, seconds since 1970, UTC."""
    return datetime.now(UTC).timestamp()


@asynccontextmanager
async def running(
    config: CoordinatorConfig, *, clock: Callable[[], float] = utc_now_s
) -> AsyncIterator[RunningCoordinator]:
    """Run a coordinator for as long as the context is open; it answers once the context is entered.

    Raises:
        ConfigError: a setting can't be used (PortInUseError: the port is taken).
        ConflictError: another coordinator runs on the state folder, or the database is another's.
        StorageError: state folder or database can't be used.
    """
    async with opened_state(config, datetime.fromtimestamp(clock(), UTC)) as opened:
        cluster = Cluster(opened.repository, _policy_settings(config), clock)
        await cluster.restore()
        store = await asyncio.to_thread(FileStore, opened.folder.files)
        catalogue = Catalogue(store, cluster)
        app = _application(config, opened, cluster, catalogue, clock)
        async with _working(app), _listening(app, config, opened) as port:
            url = config.public_url or _local_url(config.listen_host, port)
            app[PUBLIC_URL].append(url)
            opened.lease.tell_url(url)
            is_first_start = await asyncio.to_thread(opened.folder.read, names.URL) is None
            await asyncio.to_thread(opened.folder.write, names.URL, _local_url(config.listen_host, port))
            log.info("coordinator_started", url=url, coordinator_id=opened.authority.coordinator_id)
            yield RunningCoordinator(
                url=url,
                port=port,
                is_first_start=is_first_start,
                cluster=cluster,
                authority=opened.authority,
                state_folder=opened.folder,
                repository=opened.repository,
                catalogue=catalogue,
            )
            log.info("coordinator_stopping", url=url)


def _policy_settings(config: CoordinatorConfig) -> PolicySettings:
    return PolicySettings(
        suspect_after_s=config.suspect_after_s,
        failover_after_s=config.failover_after_s,
        lost_after_s=config.lost_after_s,
        settle_s=config.settle_s,
        placement=config.placement,
        replan=config.replan,
        replan_every_s=config.replan_every_s,
        replan_margin=config.replan_margin,
        auto_quantize=config.auto_quantize,
    )


def _application(
    config: CoordinatorConfig,
    opened: OpenedState,
    cluster: Cluster,
    catalogue: Catalogue,
    clock: Callable[[], float],
) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[answer_errors, check_caller])
    app[CONFIG] = config
    app[CLOCK] = clock
    app[AUTHORITY] = opened.authority
    app[REPOSITORY] = opened.repository
    app[CLUSTER] = cluster
    app[CATALOGUE] = catalogue
    app[AUTHENTICATOR] = Authenticator(opened.authority, opened.repository, clock)
    app[JOINING] = Joining(opened.authority, clock, check_worker=cluster.check_admitted)
    app[JOIN_LIMITER] = AttemptLimiter()
    app[TICKET_DESK] = TicketDesk()
    app[TRUST_REPORTS] = TrustReports(cluster)
    app[QUOTA_CLOCK] = quota_clock = SteadyClock(clock)
    quotas = QuotaDesk(opened.repository, clock, quota_clock)
    app[ROUTE_DESK] = RouteDesk(cluster, opened.repository, app[TICKET_DESK], app[TRUST_REPORTS], quotas, clock)
    app[REPORTS] = GenerationReports(
        opened.repository, clock, quota_clock=quota_clock, on_finished=app[ROUTE_DESK].take_finished
    )
    app[BAD_SOURCES] = BadSources()
    open_sockets: set[ControlSocket] = set()
    app[CONTROL_SOCKETS] = open_sockets
    app[KNOWN_NAMES] = known_names(config)
    app[PUBLIC_URL] = []
    app[VERSION] = program_version()
    app[ACCESS] = {}
    for add_routes in (
        add_client_routes,
        add_worker_routes,
        add_admin_routes,
        add_trust_routes,
        add_quota_routes,
    ):
        add_routes(app)
    app.on_response_prepare.append(add_security_headers)
    app.on_shutdown.append(_close_control_sockets)
    app.on_shutdown.append(_send_waiting_away)
    return app


@asynccontextmanager
async def _working(app: web.Application) -> AsyncIterator[None]:
    """Have time pass for the cluster and the quotas, and reports saved; at the end, those that are left."""
    cluster, reports, trust = app[CLUSTER], app[REPORTS], app[TRUST_REPORTS]
    loops = {
        "sweep": sweep_forever(cluster),
        "look": look_forever(cluster),
        "reports": reports.save_forever(),
        "trust": trust.hand_in_forever(),
        "quotas": expire_forever(app[REPOSITORY].quotas, app[QUOTA_CLOCK]),
    }
    async with running_beside(**loops):
        yield
        await reports.saved(SHUTDOWN_S)
        await trust.hand_in()


@asynccontextmanager
async def _listening(app: web.Application, config: CoordinatorConfig, opened: OpenedState) -> AsyncIterator[int]:
    """Listen with TLS; yields the port."""
    authority = opened.authority
    context = await asyncio.to_thread(server_context, authority.server_certificate, authority.server_key)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=IDLE_S)
    await runner.setup()
    try:
        await _start_site(runner, config, context)
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _start_site(runner: web.AppRunner, config: CoordinatorConfig, context: ssl.SSLContext) -> None:
    address = f"{config.listen_host}:{config.listen_port}"
    site = web.TCPSite(runner, config.listen_host or None, config.listen_port, ssl_context=context, backlog=BACKLOG)
    try:
        await site.start()
    except socket.gaierror as exc:
        raise ConfigError(f"{config.listen_host!r} is no address of this machine ({exc.strerror})") from exc
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"another program listens on {address}: stop it, or choose another port (--listen)"
            ) from exc
        why = os.strerror(exc.errno) if exc.errno else exc
        raise ConfigError(f"can't listen on {address} ({why}); choose another address or port (--listen)") from exc


async def _close_control_sockets(app: web.Application) -> None:
    """At the stop: workers come back to another start, they needn't wait for a timeout to notice this one."""
    open_sockets: set[ControlSocket] = app[CONTROL_SOCKETS]
    async with asyncio.TaskGroup() as tasks:
        for control_socket in open_sockets.copy():
            tasks.create_task(control_socket.close(), name="close-control-socket")


async def _send_waiting_away(app: web.Application) -> None:
    app[ROUTE_DESK].stop()


def _local_url(host: str, port: int) -> str:
    """Where this machine reaches the coordinator."""
    if host in ANY_HOST:
        host = "127.0.0.1"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
