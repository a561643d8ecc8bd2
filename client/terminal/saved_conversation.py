"""Conversations as files: JSON with a format version, written whole or not at all, and read only if it is one."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from client.terminal.conversation import Conversation, Turn
from client.terminal.sampling_settings import check_kinds
from protocol.disk import storage_error, write_atomically
from protocol.errors import InvalidRequestError, TooLargeError

FORMAT = "brigade-chat"
VERSION = 1
MAX_FILE_BYTES = 64 * 2**20


class SavedMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


class SavedConversation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file holds."""

    format: str = FORMAT
    version: int = VERSION
    model: str
    """Which answered last."""
    settings: dict[str, int | float] = {}
    """How answers were sampled, as far as that wasn't left to the model."""
    messages: tuple[SavedMessage, ...]
    """A system message or none, then the person's and the model's in turns."""

    def conversation(self) -> Conversation:
        """The messages as turns. ValueError if they aren't."""
        n_system = 1 if self.messages and self.messages[0].role == "system" else 0
        rest = self.messages[n_system:]
        roles = [message.role for message in rest]
        if roles != ["user", "assistant"] * (len(rest) // 2):
            raise ValueError("its messages are not a user's and an assistant's in turns, after one system message")
        turns = [Turn(said=said.content, answer=answer.content) for said, answer in list(pairwise(rest))[::2]]
        return Conversation(system=self.messages[0].content if n_system else None, turns=tuple(turns))


class _Header(msgspec.Struct):
    format: str
    version: int


def saved(conversation: Conversation, *, model: str, settings: dict[str, int | float]) -> SavedConversation:
    """A conversation as a file holds it."""
    messages = tuple(msgspec.convert(message, SavedMessage) for message in conversation.messages())
    return SavedConversation(model=model, settings=settings, messages=messages)


def write_conversation(path: Path, what: SavedConversation, *, may_replace: bool) -> None:
    """Write it, readable for this user alone; blocks.

    Raises:
        InvalidRequestError: there is a file, and it may not be replaced.
        StorageError: it can't be written.
    """
    try:
        if os.path.lexists(path) and not may_replace:
            raise InvalidRequestError(
                f"{path} is there already and not this conversation's file: give another name, or remove it first"
            )
        write_atomically(path, msgspec.json.format(msgspec.json.encode(what), indent=2) + b"\n")
    except OSError as exc:
        raise storage_error(path, exc, instead="name another file") from exc


def read_conversation(path: Path) -> tuple[SavedConversation, Conversation]:
    """What a file holds, and the conversation that it is; blocks.

    Raises:
        InvalidRequestError: it can't be read, or is no saved conversation, or one of a newer program.
        TooLargeError: it is too big to be one.
    """
    try:
        with open(path, "rb", opener=_descriptor_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidRequestError(f"{path} is no file that /save wrote, but a device or a pipe")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InvalidRequestError(f"{path} can't be read: {exc.strerror or exc}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise TooLargeError(f"{path} has more than the {MAX_FILE_BYTES} bytes that a conversation may have")
    try:
        header = msgspec.json.decode(data, type=_Header)
        if header.format != FORMAT:
            raise ValueError(f"its format is {header.format!r}, not {FORMAT!r}")  # noqa: TRY301 - one way out for all
        if header.version == VERSION:
            what = msgspec.json.decode(data, type=SavedConversation)
            check_kinds(what.settings)
            return what, what.conversation()
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"{path} is no conversation that /save wrote: {exc}") from exc
    raise InvalidRequestError(
        f"{path} is a conversation of format version {header.version}; this program reads version {VERSION}: use "
        "the version of Brigade that saved it"
    )


def _descriptor_at_once(path: str, flags: int) -> int:
    """Who opens a pipe that nobody writes to would wait for ever, and the program's end with it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
