"""How the operator's commands find the coordinator and talk to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlencode

import msgspec

from coordinator import state_folder as names
from coordinator.given_secret import secret_from_file
from coordinator.state_folder import default_state, read_state_file
from protocol.api_key import ApiKey, api_key_from_text
from protocol.coordinator_urls import checked_coordinator_url
from protocol.errors import UnreachableError

if TYPE_CHECKING:
    from protocol.pinned_http import CoordinatorSession

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminTarget:
    """The coordinator that a command is for, and the key to it."""

    url: str
    key: ApiKey
    state: Path
    """The coordinator's state folder, if it runs on this machine; nothing says that it does."""

    @classmethod
    def found(
        cls,
        *,
        url: str | None = None,
        key_file: Path | None = None,
        state: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> AdminTarget:
        """By option, else by `BRIGADE_URL` and `BRIGADE_ADMIN_KEY`, else by the state folder on this machine.

        Raises:
            ConfigError, UnauthenticatedError: what was given is no address or no key.
            UnreachableError: nothing was given, and no coordinator has run on this machine.
        """
        environ = os.environ if environ is None else environ
        folder = state or default_state(environ)
        address = url or environ.get("BRIGADE_URL") or _from_folder(folder, names.URL, "--url (or BRIGADE_URL)")
        if key_file is not None:
            key_text = secret_from_file(key_file)
        else:
            key_text = environ.get("BRIGADE_ADMIN_KEY") or _from_folder(
                folder, names.ADMIN_KEY, "--admin-key-file (or BRIGADE_ADMIN_KEY)"
            )
        return cls(url=checked_coordinator_url(address), key=api_key_from_text(key_text), state=folder)

    def ask(self, question: Callable[[CoordinatorSession], Awaitable[T]]) -> T:
        """Run `question` on a verified connection and return its answer. Blocks."""
        from protocol.pinned_http import pinned_session  # noqa: PLC0415 - takes long, and is not for --help

        async def asked() -> T:
            async with pinned_session(self.url, self.key) as session:
                return await question(session)

        return asyncio.run(asked())


class Page(Protocol):
    """A part of a list."""

    @property
    def next_cursor(self) -> str | None:
        """Where the next part begins; None: this is the last."""


P = TypeVar("P", bound=Page)


async def all_pages(
    session: CoordinatorSession, path: str, filters: Mapping[str, str | None], kind: type[P]
) -> list[P]:
    """Every page of a list; filters that are None are left out."""
    given = {name: value for name, value in filters.items() if value is not None}
    pages: list[P] = []
    while not pages or pages[-1].next_cursor is not None:
        cursor = {"cursor": pages[-1].next_cursor} if pages else {}
        query = urlencode(given | cursor)
        pages.append(await session.get(f"{path}?{query}" if query else path, kind))
    return pages


async def changed_as_read(
    session: CoordinatorSession,
    path: str,
    kind: type[msgspec.Struct],
    change: msgspec.Struct,
    answer: type[S],
    *,
    change_path: str | None = None,
) -> S:
    """PATCH of what is at `path` as it is now: if another operator changes it meanwhile, one of the two is told.

    `kind` is what `path` shows, and `change_path` where the change goes, if not there.
    """
    _, etag = await session.get_tagged(path, kind)
    return await session.patch(change_path or path, change, answer, if_match=etag)


def _from_folder(folder: Path, name: str, instead: str) -> str:
    text = read_state_file(folder / name)
    if not text:
        raise UnreachableError(
            f"no coordinator is known here ({folder / name} isn't there): start one with `coord serve`, or say "
            f"which one is meant with {instead}; another state folder with --state"
        )
    return text
