"""Bodies of the requests by which operators rotate the join secret and the signing keys, and of the answers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocol.ids import CoordinatorId, InviteId, WorkerId
from protocol.rest import Body

MAX_SECRET_GRACE_S = 8 * 86_400
"""Longer than a session token lives, and long enough to give everybody the new one."""


class SecretDates(Body, frozen=True, kw_only=True):
    """One that was replaced, without its value. Times are ISO 8601, UTC."""

    retired_at: str | None
    """None: of a signing key, the one that signs."""
    until: str | None
    """When it counts no longer; None while it isn't replaced."""


class RecentJoin(Body, frozen=True, kw_only=True):
    """A worker that joined or renewed its credentials since the coordinator's start."""

    worker_id: WorkerId
    hostname: str
    at: str
    is_current: bool
    """Whether it showed the join secret in force, not one that was replaced; or came by an invite."""
    invite_id: InviteId | None = None
    """The invite that it came by."""


class SecretsInfo(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/secrets`: dates, never values."""

    coordinator_id: CoordinatorId
    join_secret_since: str | None
    """When the one in force was made by rotation; None: it is the first, or was given at the start."""
    join_secret_from: str
    """Where the one in force comes from, in words, and which wins where there are two."""
    is_in_state_folder: bool
    """Whether the state folder's file holds the one in force."""
    previous_join_secrets: tuple[SecretDates, ...]
    """Those that admit still, newest first."""
    signing_keys: tuple[SecretDates, ...]
    """Those that verify, newest first."""
    joins: tuple[RecentJoin, ...]
    """The latest, newest first."""


class RotateSecretRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /admin/v1/secrets/join/rotate`, `.../signing-key/rotate`: a new one; older ones count for `grace_s`."""

    grace_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_SECRET_GRACE_S)] = MAX_SECRET_GRACE_S


class RotatedSecret(Body, frozen=True, kw_only=True):
    """The only time that the new join secret is shown by the coordinator; it is in its state folder too."""

    secret: str
    old_until: str
    """When all older ones admit no longer."""

    def __repr__(self) -> str:
        return f"RotatedSecret(old_until={self.old_until!r})"
