"""The coordinator put together: `running(config)` is the whole program, for the command line and for tests.

Opened in order, closed in the opposite one: state folder and database, cluster, sweep, HTTP. So at the stop the
door is shut first, then the control sockets are closed, and the database goes last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from aiohttp import web

from coordinator import state_folder as names
from coordinator.application import application
from coordinator.authority import Authority
from coordinator.catalogue import Catalogue
from coordinator.checkpoints import checkpoint_forever
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.cut_rotations import tell_untold_forever
from coordinator.dashboard_start import take_up_dashboard
from coordinator.file_store import FileStore
from coordinator.kept_reports import KeptReports
from coordinator.keys import (
    ANNOUNCER,
    AUDITOR,
    AUTHENTICATOR,
    AUTHORITY,
    CATALOGUE,
    CLOCK,
    CLUSTER,
    CONFIG,
    DASHBOARD_FEED,
    EARNED_PRIORITY,
    HISTORIES,
    METRICS,
    NEIGHBOURS,
    OPENINGS,
    PUBLIC_URL,
    QUOTA_CLOCK,
    REPORTS,
    REPOSITORY,
    ROTATING,
    TRUST_REPORTS,
)
from coordinator.loop_watch import LoopWatch
from coordinator.opening import OpenedState, opened_state
from coordinator.quota_sweep import expire_forever
from coordinator.repository import Repository
from coordinator.secret_sweep import expire_secrets_forever
from coordinator.state_folder import StateFolder
from coordinator.sweeps import look_forever, sweep_forever
from protocol.guarded_site import GuardedSite
from protocol.listening import start_listening
from protocol.metrics import RefusedConnections
from protocol.metrics_site import metrics_served
from protocol.running_beside import running_beside
from protocol.span_export import span_export
from protocol.tls import server_context
from protocol.traced_requests import SPANS

log = structlog.get_logger(__name__)

SHUTDOWN_S = 5.0
"""Requests under way get so long at the stop, and then what is still to be written does."""
ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCoordinator:
    """A coordinator that answers at `url` (`https://host:port`, for this machine or as configured)."""

    url: str
    port: int
    is_first_start: bool
    """Whether no coordinator has answered from this state folder before."""
    metrics_url: str | None
    """Where Prometheus reads its metrics without a key."""
    cluster: Cluster
    authority: Authority
    state_folder: StateFolder
    repository: Repository
    catalogue: Catalogue
    application: web.Application
    """What answers; its routes are described in it."""


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
    async with (
        opened_state(config, datetime.fromtimestamp(clock(), UTC)) as opened,
        span_export("coordinator") as spans,
    ):
        app = await _application(config, opened, clock)
        app[SPANS] = spans
        async with (
            _working(app, opened.folder),
            _listening(app, config, opened) as port,
            metrics_served(app[METRICS].registry, config.metrics_listen) as metrics_url,
        ):
            own_url = _local_url(config.listen_host, port)
            url = config.public_url or own_url
            app[PUBLIC_URL].append(url)
            opened.lease.tell_url(url)
            is_new_folder = await asyncio.to_thread(_note_url, opened.folder, own_url)
            cluster = app[CLUSTER].state
            log.info("coordinator_started", url=url, coordinator_id=opened.authority.coordinator_id)
            try:
                async with running_beside(announcer=app[ANNOUNCER].announce_forever(port)):
                    yield RunningCoordinator(
                        url=url,
                        port=port,
                        is_first_start=is_new_folder and not (cluster.models or cluster.workers),  # else restored
                        metrics_url=metrics_url,
                        cluster=app[CLUSTER],
                        authority=opened.authority,
                        state_folder=opened.folder,
                        repository=opened.repository,
                        catalogue=app[CATALOGUE],
                        application=app,
                    )
            finally:
                log.info("coordinator_stopping", url=url)
                opened.repository.transactions.stop_limit.begin(SHUTDOWN_S)


async def _application(
    config: CoordinatorConfig, opened: OpenedState, clock: Callable[[], float]
) -> web.Application:
    """What answers, with the cluster as it was when the last coordinator stopped."""
    cluster = Cluster(opened.repository, config.policy_settings(), clock, config.given)
    await cluster.restore()
    store = await asyncio.to_thread(FileStore, opened.folder.files)
    app = application(config, opened, cluster, Catalogue(store, cluster), clock)
    await take_up_dashboard(app)
    return app


@asynccontextmanager
async def _working(app: web.Application, folder: StateFolder) -> AsyncIterator[None]:
    """Have time pass for the cluster and the quotas, and reports saved; at the end, those that are left."""
    cluster, reports, trust = app[CLUSTER], app[REPORTS], app[TRUST_REPORTS]
    kept = KeptReports(reports, folder.path(names.UNSAVED_REPORTS))
    await kept.take_up()
    loops = {
        "sweep": sweep_forever(cluster),
        "keys": app[AUTHENTICATOR].refresh_forever(),
        "secrets": expire_secrets_forever(app),
        "rotations": tell_untold_forever(app[ROTATING], app[REPOSITORY], app[AUTHORITY].secrets, app[CLOCK]),
        "look": look_forever(cluster),
        "reports": reports.save_forever(),
        "kept": kept.keep_forever(),
        "trust": trust.hand_in_forever(),
        "audits": app[AUDITOR].audit_forever(),
        "earned": app[EARNED_PRIORITY].look_forever(),
        "lag": app[METRICS].lag.watch_forever(),
        "held": LoopWatch().watch_forever(),
        "checkpoints": checkpoint_forever(app[REPOSITORY].transactions),
        "quotas": expire_forever(
            app[REPOSITORY].quotas, app[OPENINGS], app[QUOTA_CLOCK], lambda: cluster.state.lost_workers
        ),
    }
    if app[CONFIG].has_dashboard:
        loops["histories"] = app[HISTORIES].sample_forever(app[DASHBOARD_FEED].put_sample)
        loops["feed"] = app[DASHBOARD_FEED].tell_forever()
    async with running_beside(**loops):
        yield
        await kept.finish(SHUTDOWN_S)
        await trust.hand_in()


@asynccontextmanager
async def _listening(app: web.Application, config: CoordinatorConfig, opened: OpenedState) -> AsyncIterator[int]:
    """Listen with TLS; yields the port."""
    authority = opened.authority
    context = await asyncio.to_thread(server_context, authority.server_certificate, authority.server_key)
    context.sni_callback = app[NEIGHBOURS].choose_certificate
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    site = GuardedSite(runner, context, host=config.listen_host or None, port=config.listen_port)
    app[METRICS].registry.register(RefusedConnections(site.n_refused))
    try:
        await start_listening(site, config.listen_host, config.listen_port)
        yield runner.addresses[0][1]
    finally:
        await site.close()


def _note_url(folder: StateFolder, url: str) -> bool:
    """Write down where the coordinator listens; whether none has before, from this folder. Blocks."""
    is_first = folder.read(names.URL) is None
    folder.write(names.URL, url)
    return is_first


def _local_url(host: str, port: int) -> str:
    """Where this machine reaches the coordinator."""
    if host in ANY_HOST:
        host = "127.0.0.1"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
