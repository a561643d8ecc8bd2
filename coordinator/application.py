"""The HTTP application put together: what handlers find in it, the middlewares and the routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from aiohttp import web

from coordinator.addresses import known_names
from coordinator.admin_api import add_admin_routes, audits_words, explained_workers
from coordinator.announcing import Announcer
from coordinator.assignment_api import add_assignment_routes
from coordinator.audit_api import add_audit_routes
from coordinator.audit_asking import Examiner
from coordinator.audit_log_api import add_audit_log_routes
from coordinator.audit_neighbours import Neighbours
from coordinator.audit_store import AuditStore
from coordinator.audits import Auditor
from coordinator.authors_api import add_author_routes
from coordinator.bad_sources import BadSources
from coordinator.catalogue import Catalogue
from coordinator.client_api import add_client_routes, model_infos
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.credentials import Authenticator
from coordinator.cut_rotations import Rotating
from coordinator.dashboard_api import SIGN_IN_LIMIT, add_dashboard_routes
from coordinator.dashboard_assets import add_dashboard_file_routes
from coordinator.dashboard_feed import DashboardFeed
from coordinator.dashboard_live_api import add_dashboard_live_routes
from coordinator.dashboard_look import LiveLook
from coordinator.dashboard_sessions import DashboardSessions
from coordinator.dashboard_store import DashboardStore
from coordinator.earned_priority import EarnedPriority
from coordinator.etags import check_preconditions
from coordinator.generation_api import add_generation_routes
from coordinator.generation_book import GenerationBook
from coordinator.generation_reports import GenerationReports
from coordinator.histories import Histories
from coordinator.invite_api import add_invite_routes
from coordinator.invite_store import InviteStore
from coordinator.joining import AttemptLimiter, Joining
from coordinator.key_api import add_key_routes
from coordinator.keys import (
    ACCESS,
    ANNOUNCER,
    AUDITOR,
    AUTHENTICATOR,
    AUTHORITY,
    BAD_SOURCES,
    CATALOGUE,
    CLOCK,
    CLUSTER,
    CONFIG,
    CONTROL_SOCKETS,
    DASHBOARD_FEED,
    DASHBOARD_SESSIONS,
    DASHBOARD_STORE,
    EARNED_PRIORITY,
    EXAMINER,
    GENERATIONS,
    HISTORIES,
    INVITES,
    JOIN_LIMITER,
    JOINING,
    KNOWN_NAMES,
    METRICS,
    MODELS_LOOK,
    NEIGHBOURS,
    OPENAPI,
    OPENINGS,
    PUBLIC_URL,
    QUOTA_CLOCK,
    QUOTA_DESK,
    REPEATING,
    REPORTS,
    REPOSITORY,
    ROTATING,
    ROUTE_DESK,
    ROUTE_DOCS,
    RUNNING,
    SESSION_ENDS,
    SIGN_IN_LIMITER,
    TICKET_DESK,
    TRUST_REPORTS,
    TURNS,
    VERSION,
    WORKERS_LOOK,
)
from coordinator.metrics import CoordinatorMetrics
from coordinator.metrics_api import add_metrics_routes
from coordinator.metrics_state import StateMetrics
from coordinator.middleware import add_security_headers, answer_errors, check_caller
from coordinator.openapi_api import add_openapi_routes
from coordinator.opening import OpenedState
from coordinator.openings import Openings
from coordinator.quota_api import add_quota_routes
from coordinator.quota_clock import SteadyClock
from coordinator.quota_desk import QuotaDesk
from coordinator.repeats import answer_repeats
from coordinator.route_desk import RouteDesk
from coordinator.running_generations import RunningGenerations
from coordinator.secret_api import add_secret_routes
from coordinator.session_ends import SessionEnds
from coordinator.settings_api import add_settings_routes
from coordinator.shared_look import SharedLook
from coordinator.stored_rows import StoredGeneration
from coordinator.ticket_desk import TicketDesk
from coordinator.traced import follow_trace
from coordinator.trust_api import add_trust_routes
from coordinator.trust_reports import TrustReports
from coordinator.turns import Turns
from coordinator.worker_admin_api import add_worker_admin_routes
from coordinator.worker_api import add_worker_routes
from protocol.codec import MAX_BODY_BYTES
from protocol.control_messages import GenerationReport
from protocol.errors import QuotaExceededError
from protocol.version import program_version

MIDDLEWARES = (answer_errors, follow_trace, check_caller, answer_repeats, check_preconditions)
"""Outermost first: an error anywhere is an answer, a repeated request is answered before its ETag is looked at."""


def application(
    config: CoordinatorConfig,
    opened: OpenedState,
    cluster: Cluster,
    catalogue: Catalogue,
    clock: Callable[[], float],
) -> web.Application:
    """What answers; nothing runs in it yet."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=MIDDLEWARES)
    app[CONFIG] = config
    app[CLOCK] = clock
    app[AUTHORITY] = opened.authority
    app[ROTATING] = Rotating()
    app[REPOSITORY] = opened.repository
    app[CLUSTER] = cluster
    app[CATALOGUE] = catalogue
    app[KNOWN_NAMES] = known_names(config)
    app[PUBLIC_URL] = []
    app[VERSION] = program_version()
    app[METRICS] = CoordinatorMetrics()
    app[REPOSITORY].transactions.on_done = app[METRICS].transaction_done
    _add_doors(app)
    _add_desks(app)
    _add_auditing(app)
    _add_dashboard(app)
    add_routes(app, has_dashboard=config.has_dashboard)
    app.on_response_prepare.append(add_security_headers)
    app.on_shutdown.append(_close_control_sockets)
    app.on_shutdown.append(_send_waiting_away)
    return app


def _add_doors(app: web.Application) -> None:
    """Who comes in, and what is kept of connections."""
    cluster, clock = app[CLUSTER], app[CLOCK]
    app[AUTHENTICATOR] = Authenticator(app[AUTHORITY], app[REPOSITORY], clock)
    app[INVITES] = InviteStore(app[REPOSITORY].transactions)
    app[JOINING] = Joining(
        app[AUTHORITY], clock, check_worker=cluster.check_admitted, use_invite=app[INVITES].use_at
    )
    app[ANNOUNCER] = Announcer(
        app[AUTHORITY].coordinator_id,
        app[AUTHORITY].ca_fingerprint,
        listen_host=app[CONFIG].listen_host,
        is_wanted=app[CONFIG].announces,
    )
    app[JOIN_LIMITER] = AttemptLimiter()
    app[BAD_SOURCES] = BadSources()
    app[CONTROL_SOCKETS] = {}


def _add_desks(app: web.Application) -> None:
    """Who gives out routes, by which quotas, and hears how generations end."""
    cluster, clock = app[CLUSTER], app[CLOCK]
    app[TICKET_DESK] = TicketDesk()
    app[SESSION_ENDS] = SessionEnds(cluster, app[REPOSITORY], app[TICKET_DESK], clock)
    app[TRUST_REPORTS] = TrustReports(cluster)
    app[QUOTA_CLOCK] = quota_clock = SteadyClock(clock)
    app[OPENINGS] = Openings(app[REPOSITORY], app[SESSION_ENDS], quota_clock)
    quotas = QuotaDesk(app[REPOSITORY], clock, quota_clock)
    app[QUOTA_DESK] = quotas
    app[EARNED_PRIORITY] = EarnedPriority(cluster, app[REPOSITORY].usage, clock)
    app[ROUTE_DESK] = RouteDesk(
        cluster,
        app[REPOSITORY],
        app[TICKET_DESK],
        app[TRUST_REPORTS],
        quotas,
        app[SESSION_ENDS],
        app[EARNED_PRIORITY],
        clock,
    )
    notes = app[ROUTE_DESK].notes
    n_missing_files = app[CATALOGUE].n_missing_files
    app[MODELS_LOOK] = SharedLook(lambda: partial(model_infos, cluster.state, clock(), n_missing_files))
    app[WORKERS_LOOK] = SharedLook(lambda: partial(explained_workers, cluster.state, clock(), notes()))
    app[REPORTS] = GenerationReports(
        app[REPOSITORY], clock, quota_clock=quota_clock, on_finished=partial(_take_finished, app)
    )


def _add_auditing(app: web.Application) -> None:
    """Who has workers audited."""
    cluster, clock = app[CLUSTER], app[CLOCK]
    app[NEIGHBOURS] = Neighbours(app[AUTHORITY], clock)
    app[EXAMINER] = Examiner(app[NEIGHBOURS], app[TICKET_DESK], app[AUTHORITY].ca_pem, clock, cluster)
    audit_store = AuditStore(app[REPOSITORY].transactions)
    app[AUDITOR] = Auditor(cluster, app[EXAMINER], audit_store, clock=clock)


def _add_dashboard(app: web.Application) -> None:
    """Who is signed in with a browser, and what they see; and Prometheus with them."""
    cluster, clock, desk = app[CLUSTER], app[CLOCK], app[ROUTE_DESK]
    app[DASHBOARD_SESSIONS] = DashboardSessions(app[AUTHORITY], clock)
    app[DASHBOARD_STORE] = DashboardStore(app[REPOSITORY].transactions)
    app[SIGN_IN_LIMITER] = AttemptLimiter(SIGN_IN_LIMIT, what="sign in", error=QuotaExceededError)
    app[RUNNING] = RunningGenerations()
    app[GENERATIONS] = GenerationBook(app[REPOSITORY].transactions, cluster.hostname)
    app[HISTORIES] = Histories(cluster, app[RUNNING], lambda: desk.n_waiting)
    StateMetrics(
        cluster,
        app[REPOSITORY],
        app[RUNNING],
        app[AUDITOR],
        n_waiting=lambda: desk.n_waiting,
        registry=app[METRICS].registry,
    )
    look = LiveLook(
        cluster, app[REPOSITORY], desk, app[RUNNING], fixed=partial(_fixed, app), audits=partial(audits_words, app)
    )
    app[DASHBOARD_FEED] = DashboardFeed(look)


def _fixed(app: web.Application) -> dict[str, str]:
    """What never changes of what the dashboard shows."""
    return {
        "coordinator_id": app[AUTHORITY].coordinator_id,
        "version": app[VERSION],
        "url": app[PUBLIC_URL][0],
    }


def add_routes(app: web.Application, *, has_dashboard: bool) -> None:
    """Put all routes in, and what is kept of them: who may use them, and their descriptions."""
    app[ACCESS] = {}
    app[ROUTE_DOCS] = {}
    app[OPENAPI] = []
    app[TURNS] = Turns()
    app[REPEATING] = set()
    for add in (
        add_client_routes,
        add_worker_routes,
        add_admin_routes,
        add_key_routes,
        add_worker_admin_routes,
        add_audit_log_routes,
        add_openapi_routes,
        add_trust_routes,
        add_audit_routes,
        add_author_routes,
        add_quota_routes,
        add_assignment_routes,
        add_secret_routes,
        add_settings_routes,
        add_generation_routes,
        add_invite_routes,
        add_metrics_routes,
    ):
        add(app)
    if has_dashboard:
        for add in (add_dashboard_routes, add_dashboard_live_routes, add_dashboard_file_routes):
            add(app)


def _take_finished(app: web.Application, generation: StoredGeneration, report: GenerationReport) -> None:
    app[ROUTE_DESK].take_finished(generation)
    app[AUDITOR].take_finished(generation)
    app[HISTORIES].take_finished(generation, report.first_token_s, report.s_per_token)
    app[METRICS].take_finished(generation, report)
    app[RUNNING].ended(generation.session_id)


async def _close_control_sockets(app: web.Application) -> None:
    """At the stop: workers come back to another start, they needn't wait for a timeout to notice this one."""
    open_sockets = app[CONTROL_SOCKETS]
    async with asyncio.TaskGroup() as tasks:
        for control_socket in tuple(open_sockets):
            tasks.create_task(control_socket.close(), name="close-control-socket")


async def _send_waiting_away(app: web.Application) -> None:
    app[ROUTE_DESK].stop()
    app[DASHBOARD_FEED].stop()
