"""Bodies of the requests by which operators make, see and revoke invites, and of the answers. JSON on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocol.admin_rest import PageQuery
from protocol.ids import InviteId, KeyId, WorkerId
from protocol.invites import MAX_INVITE_URLS
from protocol.rest import Body, RequestBody

InviteState = Literal["open", "used_up", "expired", "revoked"]
MIN_INVITE_S = 60
MAX_INVITE_S = 90 * 86_400
DEFAULT_INVITE_S = 86_400
MAX_INVITE_USES = 100
"""More machines than are set up with one copied line; each is a line of the invite's record."""
MAX_INVITE_NAME = 100


class CreateInviteRequest(RequestBody, frozen=True, kw_only=True):
    """`POST /admin/v1/invites`."""

    name: Annotated[str, msgspec.Meta(max_length=MAX_INVITE_NAME)] = ""
    """Whom or what it is for."""
    expires_in_s: Annotated[int, msgspec.Meta(ge=MIN_INVITE_S, le=MAX_INVITE_S)] = DEFAULT_INVITE_S
    """For so long new workers may join by it."""
    n_uses: Annotated[int, msgspec.Meta(ge=1, le=MAX_INVITE_USES)] = 1
    """So many workers; one that comes again counts once."""
    urls: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_INVITE_URLS)] = ()
    """Where the invited find the coordinator; none: where it knows itself to be."""


class InviteInfo(Body, frozen=True, kw_only=True):
    """An invite without what proves it. Times are ISO 8601, UTC."""

    invite_id: InviteId
    name: str
    state: InviteState
    """open: one more worker may join by it. Those that did come in again in any state but `revoked`."""
    created_at: str
    created_by: KeyId
    expires_at: str
    revoked_at: str | None
    n_uses: int
    workers: tuple[WorkerId, ...]
    """Those that joined by it, in the order in which they came."""


class CreatedInvite(Body, frozen=True, kw_only=True):
    """The only time that an invite itself is shown; the coordinator doesn't keep it."""

    info: InviteInfo
    urls: tuple[str, ...]
    """The addresses that are in it."""
    invite: str

    def __repr__(self) -> str:
        return f"CreatedInvite({self.info.invite_id!r})"


class InviteQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/invites`: which invites."""

    state: InviteState | None = None


class InviteList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/invites`, newest first."""

    invites: tuple[InviteInfo, ...]
    next_cursor: str | None = None
