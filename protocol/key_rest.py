"""Bodies of the requests by which operators make, see and revoke API keys, and of the answers. JSON on the wire."""

from __future__ import annotations

from typing import Literal

from protocol.ids import KeyId
from protocol.key_limits import UNLIMITED, KeyLimits
from protocol.rest import Body, RequestBody

KeyKind = Literal["client", "admin"]
MAX_OWNER_CHARS = 64


def check_owner(owner: str) -> None:
    """ValueError unless this can be an owner's label."""
    if len(owner) > MAX_OWNER_CHARS or not owner.isprintable():
        raise ValueError(
            f"an owner is a label of at most {MAX_OWNER_CHARS} printable characters, and this one has {len(owner)}"
            f"{'' if owner.isprintable() else ', not all of them printable'}"
        )


class CreateKeyRequest(RequestBody, frozen=True, kw_only=True):
    """`POST /admin/v1/keys`."""

    name: str
    kind: KeyKind = "client"
    limits: KeyLimits = UNLIMITED
    """What it may use; of what isn't named, the setting `default_...` counts. Since 1.2."""
    owner: str = ""
    """Whose key it is: what that owner's workers give may earn it priority. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse what is no label. ValueError: msgspec reports it as invalid."""
        check_owner(self.owner)


class CreatedKey(Body, frozen=True, kw_only=True):
    """The only time that the key itself is shown; the coordinator keeps a hash."""

    key_id: KeyId
    key: str


class KeyInfo(Body, frozen=True, kw_only=True):
    """A key without its secret. Times are ISO 8601, UTC."""

    key_id: KeyId
    name: str
    kind: KeyKind
    created_at: str
    revoked_at: str | None = None
    limits: KeyLimits = UNLIMITED
    """What it may use. Since 1.2."""
    old_until: str | None = None
    """Until when the secret before the last rotation is good. Since 1.2."""
    owner: str = ""
    """Whose it is, as an operator said; empty: nobody's in particular. Since 1.2."""


class KeyList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/keys`."""

    keys: tuple[KeyInfo, ...]
    next_cursor: str | None = None
    """Of the next page; None: this is the last. Since 1.2."""
