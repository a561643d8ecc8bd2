"""The commands of a chat, and which line is one. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from client.token_ids import check_text
from protocol.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class SlashCommand:
    """One command, as `/help` shows it."""

    name: str
    argument: str = ""
    """What follows the name, in words; in brackets if it may be left out."""
    does: str

    @property
    def usage(self) -> str:
        """`/load FILE`."""
        return f"/{self.name} {self.argument}".rstrip()


COMMANDS = {
    command.name: command
    for command in (
        SlashCommand(name="help", does="Show the commands and keys."),
        SlashCommand(name="model", argument="[NAME]", does="Show which model answers, or have another one go on."),
        SlashCommand(name="models", does="List the cluster's models."),
        SlashCommand(
            name="system",
            argument="[TEXT]",
            does="Show the system message, or set it; `-` takes it away. The turns stay.",
        ),
        SlashCommand(name="clear", does="Forget all turns; the system message stays."),
        SlashCommand(name="undo", does="Forget the latest turn."),
        SlashCommand(name="drop", argument="N", does="Forget the N oldest turns, to make room in the context."),
        SlashCommand(name="retry", does="Answer the latest message once more, or at last."),
        SlashCommand(name="save", argument="[FILE]", does="Save the conversation; without FILE: where it was."),
        SlashCommand(name="load", argument="FILE", does="Go on with a saved conversation in this one's place."),
        SlashCommand(
            name="set",
            argument="[NAME VALUE]",
            does="Show how answers are sampled, or change it; VALUE `default`: as the model recommends.",
        ),
        SlashCommand(name="route", does="Show which workers made the latest answer, and of which blocks."),
        SlashCommand(name="stats", does="Show counts and times of this chat and of its latest answer."),
        SlashCommand(name="quit", does="Leave."),
    )
}


KEYS = (
    ("Enter", "Send."),
    ("Alt-Enter", "Begin a new line (Esc and then Enter does too); pasted text keeps its lines."),
    ("Up, Down, Ctrl-R", "Earlier messages."),
    ("Ctrl-C", "Stop the answer, and keep what came of it. Twice at the prompt: leave."),
    ("Ctrl-D", "Leave."),
)
"""What the keyboard does on a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A line that is a message to the model."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commanded:
    """A line that is a command."""

    name: str
    argument: str


def parsed_line(text: str) -> Said | Commanded | None:
    """What a line (or several) means; None: nothing.

    Raises:
        InvalidRequestError: it is not valid Unicode, or begins as a command does, but is none, or has too little or
            too much behind it.
        TooLargeError: it is too long.
    """
    stripped = text.strip()
    if stripped:
        check_text(text)
    if not stripped.startswith("/"):
        return Said(text=text) if stripped else None
    if stripped.startswith("//"):
        return Said(text=stripped[1:])
    name, argument = (*stripped[1:].split(maxsplit=1), "", "")[:2]
    command = COMMANDS.get(name)
    if command is None:
        raise InvalidRequestError(
            f"there is no command /{name}: /help lists them; a message that begins with a slash is written with two"
        )
    if argument and not command.argument:
        raise InvalidRequestError(f"/{name} takes nothing behind it")
    if not argument and command.argument and not command.argument.startswith("["):
        raise InvalidRequestError(f"/{name} needs more: {command.usage}")
    return Commanded(name=name, argument=argument)
