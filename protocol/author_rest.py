"""Bodies of the requests by which operators say whose signatures of models count, and of the answers."""

from __future__ import annotations

from protocol.author_keys import AuthorKey, author_key_from_text
from protocol.model_signature import check_label
from protocol.rest import Body


class AuthorInfo(Body, frozen=True, kw_only=True):
    """An author whom the operators trust. `added_at` is ISO 8601, UTC."""

    key: AuthorKey
    name: str
    """What the operator calls whoever holds the key."""
    added_at: str
    added_by: str
    """The operator's key."""
    models: tuple[str, ...]
    """Models here that are signed with it."""


class AuthorList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/authors`, in the order in which they were added."""

    authors: tuple[AuthorInfo, ...]


class AddAuthorRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /admin/v1/authors`: models that this key signs are the author's, and he is trusted."""

    name: str
    key: AuthorKey

    def __post_init__(self) -> None:
        """Refuse what is no key, and names that a terminal doesn't show as they are. ValueError: invalid."""
        check_label(self.name, "name")
        author_key_from_text(self.key)
