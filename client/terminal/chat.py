"""A chat from its beginning to its end: on a terminal, or with lines of standard input for messages."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from client.api import Client
from client.command import chosen_model, tell
from client.config import ClientConfig
from client.options import GenerationOptions
from client.terminal.acts import Acts
from client.terminal.conversation import Conversation
from client.terminal.ctrl_c import CtrlC
from client.terminal.history_file import KeptHistory, opened_history
from client.terminal.input_lines import InputLines
from client.terminal.keyboard import unechoed
from client.terminal.prompt import Prompt
from client.terminal.saved_conversation import SavedConversation, read_conversation
from client.terminal.screen import Screen
from client.terminal.slash_commands import Said, parsed_line
from client.terminal.talk import Talk, with_file_settings
from client.token_ids import check_text
from protocol.errors import BrigadeError, InvalidRequestError, NotFoundError
from protocol.exit_codes import EXIT_OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One `client chat`."""

    model: str | None
    system: str | None
    resume: Path | None
    options: GenerationOptions
    is_json: bool


async def chatted(config: ClientConfig, wanted: Wanted) -> int:
    """Chat until the person leaves, or standard input ends; the exit code.

    Raises:
        BrigadeError: it can't begin; without a terminal, whatever goes wrong.
    """
    if None in (sys.__stdin__, sys.__stdout__):
        raise InvalidRequestError("standard input or output is closed: a chat reads and answers there")
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if wanted.is_json and is_terminal:
        raise InvalidRequestError("--json is for messages that come from standard input: here is a terminal")
    resumed = None if wanted.resume is None else await asyncio.to_thread(read_conversation, wanted.resume)
    screen = Screen(is_terminal=is_terminal, is_json=wanted.is_json)
    async with Client(config=config, on_notice=tell) as client:
        talk = await _begun(client, screen, wanted, resumed)
        acts = Acts(client, screen, talk)
        if resumed is not None:
            acts.show_loaded()
        if is_terminal:
            await _on_terminal(config, screen, talk, acts)
        else:
            await _over_lines(talk, acts)
    return EXIT_OK


async def _begun(
    client: Client, screen: Screen, wanted: Wanted, resumed: tuple[SavedConversation, Conversation] | None
) -> Talk:
    options, conversation, name = wanted.options, Conversation(), wanted.model
    if resumed is not None:
        what, conversation = resumed
        options, name = with_file_settings(options, what), name or what.model
    if wanted.system:
        check_text(wanted.system)
    if wanted.system is not None:
        conversation = Conversation(system=wanted.system, turns=conversation.turns)
    try:
        model = await chosen_model(client, name)
    except NotFoundError as exc:
        if wanted.model is not None or resumed is None:
            raise
        raise NotFoundError(f"{name} answered in {wanted.resume}: {exc.message}; --model chooses another") from exc
    return Talk(client, screen, model=model, options=options, conversation=conversation, file=wanted.resume)


async def _over_lines(talk: Talk, acts: Acts) -> None:
    """One line, one message or command. Whatever goes wrong ends it, so that a script finds out."""
    lines = InputLines(sys.stdin.fileno())
    while (line := await lines.line()) is not None:
        if not await _done(line, talk, acts):
            return


async def _on_terminal(config: ClientConfig, screen: Screen, talk: Talk, acts: Acts) -> None:
    history, why_none = await asyncio.to_thread(opened_history, config.chat_history)
    if why_none is not None:
        screen.notice(why_none)
    screen.aside(f"{talk.model.name} answers. /help lists commands and keys; Ctrl-C stops an answer, Ctrl-D leaves")
    if talk.model.state != "ready":
        screen.notice(f"{talk.model.name} can't be used just now: {talk.model.reason}")
    prompt = Prompt(history, toolbar=lambda: _toolbar(talk), model_names=lambda: acts.model_names)
    ctrl_c = CtrlC(prompt.interrupt)
    is_going_on = True

    async def carry_out(line: str) -> None:
        nonlocal is_going_on
        try:
            is_going_on = await _done(line, talk, acts)
        except BrigadeError as exc:
            screen.error(exc.message)

    with ctrl_c.handled(), unechoed():
        while is_going_on and (line := await prompt.asked(screen.aside)) is not None:
            if isinstance(history, KeptHistory) and history.failure is not None:
                screen.notice(history.failure)
                history.failure = None
            if not await ctrl_c.stoppable(carry_out(line)):
                screen.notice(_stopped(talk))


async def _done(line: str, talk: Talk, acts: Acts) -> bool:
    """Answer a line or carry it out; whether the chat goes on."""
    match parsed_line(line):
        case None:
            return True
        case Said(text=text):
            await talk.say(text)
            return True
        case command:
            return await acts.carry_out(command)


def _stopped(talk: Talk) -> str:
    if talk.unanswered is not None:
        return "stopped before an answer came: /retry sends the message again"
    return "stopped"


def _toolbar(talk: Talk) -> str:
    used = 0 if talk.latest is None else talk.latest.prompt_tokens + talk.latest.completion_tokens
    turns = len(talk.conversation.turns)
    return f"{talk.model.name}   turns {turns}   context {used} of {talk.model.context_length}   /help"
