"""Bodies of what the dashboard's page asks: signing in, live events, histories. JSON on the wire.

The page comes with the coordinator, so both are of one version. What operators change they change by the admin API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from protocol.ids import CoordinatorId, KeyId
from protocol.rest import Body, Query

Fields = dict[str, Any]
"""Of one worker, model or generation, by name."""
Entries = dict[str, Fields]
"""Workers, models or generations, by id."""


class SignInRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /dashboard/session`: sign in with an operator's key."""

    key: Annotated[str, msgspec.Meta(max_length=1000)]


class DashboardSession(Body, frozen=True, kw_only=True):
    """`GET` and `POST /dashboard/session`: who is signed in, and until when. Times are seconds since 1970, UTC."""

    key_id: KeyId
    key_name: str
    csrf_token: str
    """Goes into the header `Brigade-CSRF` of every request that changes something."""
    expires_at_s: float
    """The latest time at which the session is over, whatever is asked."""
    idle_s: float
    """And after so long without a request."""
    now_s: float
    coordinator_id: CoordinatorId
    version: str
    url: str
    gateway_url: str
    """Origin of the gateway that the chat page talks to; empty: none is set."""


class LiveState(Body, frozen=True, kw_only=True):
    """Event `snapshot`: the whole cluster. A reader throws away what it had."""

    at_s: float
    cluster: Fields
    models: Entries
    workers: Entries
    generations: Entries


class LiveDelta(Body, frozen=True, kw_only=True, omit_defaults=True):
    """Event `delta`: what has changed. Of an entry, fields to be put in place of the old ones; null: it is gone."""

    at_s: float
    cluster: Fields = msgspec.field(default_factory=dict)
    models: dict[str, Fields | None] = msgspec.field(default_factory=dict)
    workers: dict[str, Fields | None] = msgspec.field(default_factory=dict)
    generations: dict[str, Fields | None] = msgspec.field(default_factory=dict)


class HistoryPoint(Body, frozen=True, kw_only=True):
    """Event `sample`: the newest values of all series of the cluster; null: nothing was measured."""

    at_s: float
    values: dict[str, float | None]


class StreamEnd(Body, frozen=True, kw_only=True):
    """Event `end`, the last of a stream."""

    reason: Literal["signed_out", "revoked", "expired", "stopping"]
    message: str


class HistoryQuery(Query, frozen=True, kw_only=True):
    """`GET /dashboard/history` and `GET /dashboard/history/workers/{worker_id}`."""

    span: Literal["hour", "day"] = "hour"


class HistoryAnswer(Body, frozen=True, kw_only=True):
    """Series of values, one each `step_s`, oldest first, the last one at `end_s`; null: nothing was measured."""

    step_s: float
    end_s: float
    series: dict[str, list[float | None]]
