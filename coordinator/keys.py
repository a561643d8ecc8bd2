"""Typed keys: what handlers find in the application and in the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from coordinator.announcing import Announcer
from coordinator.audit_asking import Examiner
from coordinator.audit_neighbours import Neighbours
from coordinator.audits import Auditor
from coordinator.authority import Authority
from coordinator.bad_sources import BadSources
from coordinator.catalogue import Catalogue
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.control_socket import ControlSocket
from coordinator.credentials import Access, Authenticator, Caller, WorkerCaller
from coordinator.cut_rotations import Rotating
from coordinator.dashboard_feed import DashboardFeed
from coordinator.dashboard_files import DashboardFile
from coordinator.dashboard_sessions import DashboardSessions
from coordinator.dashboard_store import DashboardStore
from coordinator.earned_priority import EarnedPriority
from coordinator.generation_book import GenerationBook
from coordinator.generation_reports import GenerationReports
from coordinator.histories import Histories
from coordinator.invite_store import InviteStore
from coordinator.joining import AttemptLimiter, Joining
from coordinator.metrics import CoordinatorMetrics
from coordinator.openings import Openings
from coordinator.quota_clock import SteadyClock
from coordinator.quota_desk import QuotaDesk
from coordinator.repository import Repository
from coordinator.route_desk import RouteDesk
from coordinator.route_docs import RouteDoc
from coordinator.running_generations import RunningGenerations
from coordinator.session_ends import SessionEnds
from coordinator.shared_look import SharedLook
from coordinator.ticket_desk import TicketDesk
from coordinator.trust_reports import TrustReports
from coordinator.turns import Turns
from protocol.cluster_rest import WorkerInfo
from protocol.ids import KeyId
from protocol.rest import ModelInfo

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""

CONFIG: Final = web.AppKey("config", CoordinatorConfig)
CLOCK: Final = web.AppKey[Clock]("clock")
QUOTA_CLOCK: Final = web.AppKey("quota_clock", SteadyClock)
AUTHORITY: Final = web.AppKey("authority", Authority)
ROTATING: Final = web.AppKey("rotating", Rotating)
REPOSITORY: Final = web.AppKey("repository", Repository)
CLUSTER: Final = web.AppKey("cluster", Cluster)
MODELS_LOOK: Final = web.AppKey[SharedLook[tuple[ModelInfo, ...]]]("models_look")
WORKERS_LOOK: Final = web.AppKey[SharedLook[tuple[WorkerInfo, ...]]]("workers_look")
CATALOGUE: Final = web.AppKey("catalogue", Catalogue)
AUTHENTICATOR: Final = web.AppKey("authenticator", Authenticator)
JOINING: Final = web.AppKey("joining", Joining)
METRICS: Final = web.AppKey("metrics", CoordinatorMetrics)
JOIN_LIMITER: Final = web.AppKey("join_limiter", AttemptLimiter)
INVITES: Final = web.AppKey("invites", InviteStore)
ANNOUNCER: Final = web.AppKey("announcer", Announcer)
BAD_SOURCES: Final = web.AppKey("bad_sources", BadSources)
EARNED_PRIORITY: Final = web.AppKey("earned_priority", EarnedPriority)
QUOTA_DESK: Final = web.AppKey("quota_desk", QuotaDesk)
ROUTE_DESK: Final = web.AppKey("route_desk", RouteDesk)
OPENINGS: Final = web.AppKey("openings", Openings)
REPORTS: Final = web.AppKey("reports", GenerationReports)
SESSION_ENDS: Final = web.AppKey("session_ends", SessionEnds)
TICKET_DESK: Final = web.AppKey("ticket_desk", TicketDesk)
TRUST_REPORTS: Final = web.AppKey("trust_reports", TrustReports)
NEIGHBOURS: Final = web.AppKey("neighbours", Neighbours)
EXAMINER: Final = web.AppKey("examiner", Examiner)
AUDITOR: Final = web.AppKey("auditor", Auditor)
DASHBOARD_SESSIONS: Final = web.AppKey("dashboard_sessions", DashboardSessions)
DASHBOARD_STORE: Final = web.AppKey("dashboard_store", DashboardStore)
DASHBOARD_FILES: Final = web.AppKey[Mapping[str, DashboardFile]]("dashboard_files")
DASHBOARD_FEED: Final = web.AppKey("dashboard_feed", DashboardFeed)
SIGN_IN_LIMITER: Final = web.AppKey("sign_in_limiter", AttemptLimiter)
GENERATIONS: Final = web.AppKey("generations", GenerationBook)
RUNNING: Final = web.AppKey("running", RunningGenerations)
HISTORIES: Final = web.AppKey("histories", Histories)
CONTROL_SOCKETS: Final = web.AppKey[dict[ControlSocket, WorkerCaller]]("control_sockets")
"""The open ones, to be closed at the stop."""
KNOWN_NAMES: Final = web.AppKey[frozenset[str]]("known_names")
PUBLIC_URL: Final = web.AppKey[list[str]]("public_url")
"""One entry, set once the port is known."""
VERSION: Final = web.AppKey("version", str)
"""Of this program; read from the disk once, at the start."""
ACCESS: Final = web.AppKey[dict[web.AbstractRoute, Access]]("access")
"""Who may use each route; a route that isn't here answers nobody."""
ROUTE_DOCS: Final = web.AppKey[dict[web.AbstractRoute, RouteDoc]]("route_docs")
"""What each route takes and answers."""

OPENAPI: Final = web.AppKey[list[bytes]]("openapi")
"""The document, once somebody has asked for it."""
TURNS: Final = web.AppKey("turns", Turns)
REPEATING: Final = web.AppKey[set[tuple[KeyId, str]]]("repeating")
"""Requests with an Idempotency-Key that are being carried out: who asks, and the key's hash."""

CALLER: Final = web.RequestKey[Caller]("caller")
"""Who asks, on routes that aren't open."""


def described(request: web.Request) -> RouteDoc | None:
    """The description of the route that a request goes to."""
    return request.app[ROUTE_DOCS].get(request.match_info.route)
